//! The capacity of the memory for keys and values: the largest context, and the number of rows of usual lengths.

use phi_edge_engine::{Decoder, Engine, KvType};
use phi_edge_models::GenaiConfig;
use phi_edge_onnx::{KvFootprint, OnnxDecoder, Provider};

/// The lengths of rows that are counted, in tokens.
const ROW_LENGTHS: [usize; 3] = [2 << 10, 8 << 10, 32 << 10];

/// The lines of the report: the memory, and what it holds for each type of keys and values. `configured` says that the
/// memory is that of `runtime.kv_memory`.
pub(super) fn lines(engine: &Engine<OnnxDecoder>, config: &GenaiConfig, configured: bool) -> Vec<String> {
    let decoder = engine.decoder();
    let caps = decoder.caps();
    if decoder.provider() != Provider::Cpu {
        let row = caps.context_length as u64 * caps.kv_bytes_per_token;
        return vec![format!(
            "{} rows of {} tokens in {}, {} each, allocated whole on the device",
            caps.rows,
            caps.context_length,
            caps.kv_type.as_str(),
            size(row)
        )];
    }
    let Some(memory) = engine.kv_use().budget else {
        return vec!["the memory of keys and values has no bound: set runtime.kv_memory".to_owned()];
    };
    let source = if configured {
        "runtime.kv_memory"
    } else {
        "a share of what is free with the model loaded"
    };
    let mut lines = vec![format!("{} for keys and values ({source})", size(memory))];
    let obstacle = decoder.i8_obstacle();
    for (kv_type, footprint) in decoder.kv_footprints() {
        let held = held(footprint, memory, config.context_length);
        let name = kv_type.as_str();
        lines.push(match &obstacle {
            _ if kv_type == caps.kv_type => format!("{name}, in use: {held}"),
            Some(obstacle) if kv_type == KvType::I8 => format!("{name}: {held}; but not here: {obstacle}"),
            _ => format!("{name}: {held}"),
        });
    }
    lines
}

/// The capacity of `memory` bytes for a model that takes `context` tokens.
fn held(footprint: KvFootprint, memory: u64, context: usize) -> String {
    let largest = footprint.context(memory).min(context);
    let mut lengths: Vec<usize> = ROW_LENGTHS
        .into_iter()
        .filter(|length| *length <= context)
        .collect();
    if lengths.is_empty() {
        lengths.push(context);
    }
    let rows: Vec<String> = lengths
        .into_iter()
        .map(|length| format!("{} of {}", footprint.rows(memory, length), tokens(length)))
        .collect();
    format!(
        "{} a token; context up to {largest} tokens; rows that fit: {} tokens",
        size(footprint.bytes_per_token),
        rows.join(", ")
    )
}

/// A number of tokens, in units of 1,024 where it is a multiple of that.
fn tokens(count: usize) -> String {
    if count >= 1 << 10 && count.is_multiple_of(1 << 10) {
        format!("{}K", count >> 10)
    } else {
        count.to_string()
    }
}

/// A number of bytes for people: three digits or so.
fn size(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1 << 10 {
        return format!("{bytes} B");
    }
    let mut tenths = u128::from(bytes) * 10 / 1024;
    let mut unit = 0;
    while tenths >= 10_240 && unit + 1 < UNITS.len() {
        tenths /= 1024;
        unit += 1;
    }
    let name = UNITS[unit];
    if tenths % 10 == 0 || tenths >= 1000 {
        format!("{} {name}", tenths / 10)
    } else {
        format!("{}.{} {name}", tenths / 10, tenths % 10)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 1 MiB a token, in blocks of 16 tokens, and 8 MiB a row.
    const FOOTPRINT: KvFootprint = KvFootprint {
        bytes_per_token: 1 << 20,
        block_tokens: 16,
        row_overhead: 8 << 20,
    };

    #[test]
    fn the_context_and_the_rows_are_what_the_memory_holds() {
        let check = |memory: u64, context: usize, expected: &str| {
            assert_eq!(held(FOOTPRINT, memory, context), expected);
        };
        check(
            5 << 30,
            131_072,
            "1 MiB a token; context up to 5103 tokens; rows that fit: 2 of 2K, 0 of 8K, 0 of 32K tokens",
        );
        check(
            17 << 30,
            8192,
            "1 MiB a token; context up to 8192 tokens; rows that fit: 8 of 2K, 2 of 8K tokens",
        );
        check(
            1 << 30,
            1000,
            "1 MiB a token; context up to 1000 tokens; rows that fit: 1 of 1000 tokens",
        );
        check(
            0,
            2048,
            "1 MiB a token; context up to 0 tokens; rows that fit: 0 of 2K tokens",
        );
    }

    #[test]
    fn sizes_are_read_at_a_glance() {
        for (bytes, expected) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (196 << 10, "196 KiB"),
            (1536, "1.5 KiB"),
            (1000 << 10, "1000 KiB"),
            (5_000_000_000, "4.6 GiB"),
            (6 << 30, "6 GiB"),
            (150_300 << 10, "146 MiB"),
            (u64::MAX, "16777215 TiB"),
        ] {
            assert_eq!(size(bytes), expected);
        }
    }
}
