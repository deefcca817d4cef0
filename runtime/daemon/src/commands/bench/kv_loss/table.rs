//! The report as text.

use std::fmt::Write as _;

use serde_json::Value;

use super::divergence::DECIDED_MARGIN;

/// A table with a line for each range of past lengths of the text, for the whole text, and for the answers.
pub(super) fn table(report: &Value) -> String {
    let mut text = format!(
        "Keys and values of 8 bits against 32 bits: {} and {} bytes a token\n\
         Text: {} passages of {} tokens. Answers: {} prompts, {} answered alike.\n\n",
        report["kv_bytes_per_token"],
        report["kv_bytes_per_token_f32"],
        report["passages"],
        report["prompt_tokens"],
        report["answers"]["answers"],
        report["answers"]["answers_alike"],
    );
    let decided = format!("where margin > {DECIDED_MARGIN}");
    let head = [
        "past tokens",
        "compared",
        "top-1",
        &decided,
        "mean KL",
        "99 % of KL",
        "logits' error",
    ];
    add_line(&mut text, head);
    for past in report["past"].as_array().into_iter().flatten() {
        let range = &past["past_tokens"];
        add_figures(&mut text, &format!("{} to {}", range[0], range[1]), past);
    }
    add_figures(&mut text, "all of the text", report);
    add_figures(&mut text, "answers", &report["answers"]);
    text
}

fn add_figures(text: &mut String, name: &str, figures: &Value) {
    let absent = || "–".to_owned();
    let percent = |key: &str| {
        figures[key]
            .as_f64()
            .map_or_else(absent, |share| format!("{:.2} %", share * 100.0))
    };
    let number = |key: &str| {
        figures[key]
            .as_f64()
            .map_or_else(absent, |value| format!("{value:.2e}"))
    };
    let decided = format!("{} of {}", percent("decided_top1_agreement"), figures["decided"]);
    let [compared, top] = [figures["compared"].to_string(), percent("top1_agreement")];
    let [mean, percentile, error] = ["kl_mean", "kl_p99", "logits_error"].map(number);
    add_line(
        text,
        [name, &compared, &top, &decided, &mean, &percentile, &error],
    );
}

fn add_line(text: &mut String, [name, compared, top, decided, mean, percentile, error]: [&str; 7]) {
    // Writing to a string can't fail.
    let _ = writeln!(
        text,
        "{name:>16} {compared:>9} {top:>9} {decided:>20} {mean:>10} {percentile:>11} {error:>14}"
    );
}
