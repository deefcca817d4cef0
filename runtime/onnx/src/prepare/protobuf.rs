//! The wire format of protobuf messages, as far as fields are found and written (protobuf encoding specification).

use std::ops::Range;

/// One field of a message: where it stands, and what it carries if it is of length-delimited form.
pub(super) struct Field {
    pub(super) number: u32,
    pub(super) whole: Range<usize>,
    pub(super) payload: Range<usize>,
}

/// The fields of a message in their order; `None` if the bytes are none.
pub(super) fn fields(bytes: &[u8]) -> Option<Vec<Field>> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let start = at;
        let tag = varint(bytes, &mut at)?;
        let payload = match tag & 7 {
            0 => {
                varint(bytes, &mut at)?;
                at..at
            }
            1 => skip(bytes, &mut at, 8)?,
            2 => {
                let length = usize::try_from(varint(bytes, &mut at)?).ok()?;
                skip(bytes, &mut at, length)?
            }
            5 => skip(bytes, &mut at, 4)?,
            _ => return None,
        };
        found.push(Field {
            number: u32::try_from(tag >> 3).ok()?,
            whole: start..at,
            payload,
        });
    }
    Some(found)
}

pub(super) fn name_of(message: &[u8], number: u32) -> Option<&str> {
    let field = fields(message)?.into_iter().find(|field| field.number == number);
    match field {
        Some(field) => std::str::from_utf8(&message[field.payload]).ok(),
        None => Some(""),
    }
}

fn skip(bytes: &[u8], at: &mut usize, length: usize) -> Option<Range<usize>> {
    let range = *at..at.checked_add(length)?;
    bytes.get(range.clone())?;
    *at = range.end;
    Some(range)
}

fn varint(bytes: &[u8], at: &mut usize) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let byte = *bytes.get(*at)?;
        *at += 1;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// Appends a length-delimited field.
pub(super) fn put(out: &mut Vec<u8>, number: u32, payload: &[u8]) {
    prost::encoding::encode_varint(u64::from(number << 3 | 2), out);
    prost::encoding::encode_varint(payload.len() as u64, out);
    out.extend_from_slice(payload);
}
