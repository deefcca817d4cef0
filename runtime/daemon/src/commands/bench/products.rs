//! The products alone: how near the kernels come to what the processor's multipliers could do.

use phi_edge_onnx::{Isa, IsaChoice, product_speeds};
use serde_json::json;

use super::BenchArgs;
use crate::exit::{Exit, Fault};

/// Numbers of rows: one stream, a few, and the chunks of a prompt.
const ROWS: [usize; 6] = [1, 4, 8, 32, 128, 512];

/// Measures the kernels of `--isa` and prints one line for each number of rows.
pub(super) fn products(args: &BenchArgs) -> Result<(), Fault> {
    let isa = match args.model.isa.unwrap_or_default() {
        IsaChoice::Auto => Isa::detect(),
        IsaChoice::Only(isa) => Some(isa),
        IsaChoice::None => None,
    };
    let isa = isa.ok_or_else(|| {
        Fault::new(
            Exit::Config,
            "there are no kernels for this processor: docs/hardware.md",
        )
    })?;
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let threads = args.model.threads.map_or(processors, usize::from);
    let speeds = product_speeds(isa, threads, &ROWS).map_err(|error| Fault::new(Exit::Config, error))?;
    if !args.json {
        println!("{} on {threads} threads, 10^9 products a second", isa.as_str());
        println!("rows  block  zero points  products    peak  of it");
    }
    for speed in speeds {
        let of_peak = speed.products_per_s / speed.peak_per_s;
        if args.json {
            let report = json!({
                "isa": isa.as_str(),
                "threads": threads,
                "rows": speed.rows,
                "block": speed.block,
                "zero_points": speed.zero_points,
                "products_per_s": speed.products_per_s,
                "peak_per_s": speed.peak_per_s,
            });
            println!("{report}");
        } else {
            println!(
                "{:4}  {:5}  {:11}  {:8.1}  {:6.1}  {of_peak:5.2}",
                speed.rows,
                speed.block,
                if speed.zero_points { "yes" } else { "no" },
                speed.products_per_s / 1e9,
                speed.peak_per_s / 1e9,
            );
        }
    }
    Ok(())
}
