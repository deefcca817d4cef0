//! The experts of one layer alone, in turns with ONNX Runtime's operator.

use std::time::Duration;

use phi_edge_models::ModelDir;
use phi_edge_onnx::{Library, expert_speeds};
use serde_json::json;

use super::{BenchArgs, median};
use crate::exit::Fault;
use crate::setup::model::ModelSetup;

/// Numbers of tokens: one stream, a few, and the chunks of a prompt.
const TOKENS: [usize; 5] = [1, 4, 8, 32, 128];
/// Turns of each.
const TURNS: usize = 15;

/// Measures and prints one line for each number of tokens: medians, and the median of the turns' ratios.
pub(super) fn experts(args: &BenchArgs) -> Result<(), Fault> {
    let setup = ModelSetup::from_args(&args.model, 1, false)?;
    let model = ModelDir::open(&setup.model)?;
    let library = Library::find(setup.library.as_deref())?;
    let speeds = expert_speeds(&library, &model, &setup.decoder, (&TOKENS, TURNS))?;
    if !args.json {
        println!("tokens  experts ms  QMoE ms  QMoE / experts (least, most)");
    }
    for speed in speeds {
        let milliseconds = |of: usize| median(speed.turns.iter().map(|turn| ms(turn[of])).collect());
        let mut ratios: Vec<f64> = speed.turns.iter().map(|turn| ms(turn[1]) / ms(turn[0])).collect();
        ratios.sort_by(f64::total_cmp);
        let (least, most) = (ratios.first().copied(), ratios.last().copied());
        let (own, library, ratio) = (milliseconds(0), milliseconds(1), median(ratios));
        if args.json {
            let report = json!({
                "tokens": speed.tokens,
                "experts_ms": own,
                "qmoe_ms": library,
                "ratio": ratio,
                "least": least,
                "most": most,
            });
            println!("{report}");
        } else {
            let (least, most) = (least.unwrap_or_default(), most.unwrap_or_default());
            println!(
                "{:6}  {own:10.2}  {library:7.2}  {ratio:.2} ({least:.2}, {most:.2})",
                speed.tokens
            );
        }
    }
    Ok(())
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
