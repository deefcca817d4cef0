//! The state that an earlier process left, read from its rows.

use rusqlite::{Connection, OptionalExtension, Row, params};

use tokio::time::Instant;

use super::blobs::{self, StoredImages};
use super::value::{for_each_row, parse, unsigned};
use crate::clock::{Clock, Moment};
use crate::receipt::{ReceiptRow, receipt_mark};
use crate::record::{
    AddressRow, BodyRow, JobRecord, MessageRow, RequestRow, Restored, RestoredJob, RestoredState, Tries,
    symbols_of_bytes,
};
use crate::rules;
use phi_edge_api::Reply;
use phi_edge_api::{JobKey, NewJob, ReplyAddress};

/// The most symbols of a stored prompt: more than any model takes, so that a damaged one takes no memory.
const MAX_PROMPT_SYMBOLS: usize = 1 << 20;

/// The direction in which rows are read, and the tolerance of errors.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Reading {
    /// All rows, or an error.
    Sound,
    /// The rows from the first to the first that can't be read.
    Rising,
    /// The rows from the last back to the first that can't be read.
    Falling,
}

/// Reads all tables.
pub(super) fn read(connection: &Connection, reading: Reading) -> rusqlite::Result<Restored> {
    let order = if reading == Reading::Falling {
        "DESC"
    } else {
        "ASC"
    };
    let mut restored = Restored::default();
    let mut images = StoredImages::default();
    let tables = [
        blobs::read(connection, order, &mut images),
        for_each_row(
            connection,
            &format!(
                "SELECT place, client, id, digest, request, prompt, addresses, accepted_up, accepted_wall,
                     expires_up, expires_wall, attempts, crashes, suspect, outcome, until_up
                 FROM jobs ORDER BY place {order}"
            ),
            |row| {
                if let Some((job, receipts)) = job(row, &mut images)? {
                    restored.jobs.push(job);
                    restored.former_receipts.extend(receipts.iter().map(receipt_mark));
                }
                Ok(())
            },
        ),
        for_each_row(
            connection,
            &format!("SELECT delivery, message FROM outbox ORDER BY delivery {order}"),
            |row| {
                restored.outbox.extend(message(row)?);
                Ok(())
            },
        ),
        for_each_row(
            connection,
            &format!("SELECT packet, number, mark FROM receipts ORDER BY packet {order}"),
            |row| {
                restored.receipts.push(ReceiptRow {
                    packet_id: row.get(0)?,
                    number: unsigned(row.get(1)?),
                    mark: row.get(2)?,
                });
                Ok(())
            },
        ),
        for_each_row(connection, "SELECT mark FROM former_receipts", |row| {
            restored.former_receipts.push(row.get(0)?);
            Ok(())
        }),
        for_each_row(connection, "SELECT value FROM meta WHERE name = 'link'", |row| {
            restored.link_note = Some(row.get(0)?);
            Ok(())
        }),
    ];
    let mut tables = Vec::from(tables);
    tables.extend(rules::read(connection, order, &mut restored.rules));
    for table in tables {
        match table {
            Err(error) if reading == Reading::Sound => return Err(error),
            Err(error) => tracing::warn!(%error, "a part of the damaged store can't be read"),
            Ok(()) => {}
        }
    }
    Ok(restored)
}

/// Returns a job with its receipts of an earlier version. `None` for a row with values that this version does not know,
/// which is logged.
fn job(row: &Row<'_>, images: &mut StoredImages) -> rusqlite::Result<Option<(RestoredJob, Vec<[u8; 32]>)>> {
    let client: String = row.get(1)?;
    let key = JobKey {
        client: (!client.is_empty()).then_some(client),
        id: row.get(2)?,
    };
    let request: Option<RequestRow> = parse(&row.get::<_, String>(4)?);
    let addresses: Option<Vec<AddressRow>> = parse(&row.get::<_, String>(6)?);
    let outcome: Option<String> = row.get(14)?;
    let body = match &outcome {
        None => Some(None),
        Some(outcome) => parse::<BodyRow>(outcome).and_then(BodyRow::body).map(Some),
    };
    let prompt = symbols_of_bytes(&row.get::<_, Vec<u8>>(5)?, MAX_PROMPT_SYMBOLS);
    let (Some(request), Some(addresses), Some(body), Some(prompt)) = (request, addresses, body, prompt)
    else {
        tracing::error!(
            job.id = key.id,
            job.client = key.client,
            "a stored job can't be understood"
        );
        return Ok(None);
    };
    let receipts = request.receipts.clone();
    let addresses: Vec<ReplyAddress> = addresses.into_iter().map(ReplyAddress::from).collect();
    let first = addresses.first().cloned().unwrap_or_else(ReplyAddress::nowhere);
    let moment = |up, wall| -> rusqlite::Result<Moment> {
        Ok(Moment {
            up_ms: row.get(up)?,
            wall_ms: row.get(wall)?,
        })
    };
    let left_out_tokens = request.left_out_tokens;
    let place = unsigned(row.get(0)?);
    // An outcome needs no images any more.
    let count = if body.is_none() { request.images } else { 0 };
    let images = blobs::take(images, place, count);
    let lost_images = images.is_none();
    let restored = RestoredJob {
        record: JobRecord {
            job: NewJob {
                images: images.unwrap_or_default(),
                ..request.job(key, row.get(3)?, first)
            },
            prompt,
            left_out_tokens,
            place,
            tries: Tries {
                attempts: row.get(11)?,
                crashes: row.get(12)?,
                suspect: row.get(13)?,
            },
            accepted: moment(7, 8)?,
            expires: moment(9, 10)?,
        },
        addresses,
        lost_images,
        state: match body {
            None => RestoredState::Open,
            Some(body) => RestoredState::Done {
                body,
                until_up_ms: row.get::<_, Option<i64>>(15)?.unwrap_or_default(),
            },
        },
    };
    Ok(Some((restored, receipts)))
}

fn message(row: &Row<'_>) -> rusqlite::Result<Option<Reply>> {
    let delivery = unsigned(row.get(0)?);
    let message = parse::<MessageRow>(&row.get::<_, String>(1)?).and_then(|message| message.reply(delivery));
    if message.is_none() {
        tracing::error!(delivery, "a stored message can't be understood");
    }
    Ok(message)
}

/// Rebases the times after a restart of the machine: what is left of each, by the wall clock, counts from now.
///
/// The wall clock may be wrong: nothing gets more time than it had, and what was written in the future is new.
pub(super) fn rebase(connection: &Connection, clock: &Clock) -> rusqlite::Result<()> {
    let now = clock.keep(Instant::now());
    connection.execute(
        "UPDATE jobs SET
             expires_up = ?1 + min(max(expires_wall - ?2, 0), expires_up - accepted_up),
             until_up = ?1 + min(max(until_wall - ?2, 0), coalesce(until_up, 0) - accepted_up),
             accepted_up = ?1 - min(max(?2 - accepted_wall, 0), expires_up - accepted_up)",
        params![now.up_ms, now.wall_ms],
    )?;
    Ok(())
}

pub(super) fn boot(connection: &Connection) -> rusqlite::Result<Option<String>> {
    connection
        .query_row("SELECT value FROM meta WHERE name = 'boot'", [], |row| row.get(0))
        .optional()
}
