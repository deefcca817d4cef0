//! Changes as SQL.

use rusqlite::{Connection, params};

use super::blobs;
use super::value::{client, json, signed};
use crate::change::Change;
use crate::record::{AddressRow, BodyRow, JobRecord, MessageRow, RequestRow, symbols_to_bytes};
use crate::rules;
use phi_edge_api::ReplyAddress;

/// The statements that empty the tables of receipts.
pub(crate) const FORGET_RECEIPTS: &str = "DELETE FROM receipts; DELETE FROM former_receipts;";

pub(super) fn apply(connection: &Connection, change: &Change) -> rusqlite::Result<()> {
    match change {
        Change::Accept(record) => {
            let JobRecord {
                job,
                prompt,
                left_out_tokens,
                place,
                tries,
                accepted,
                expires,
            } = record.as_ref();
            connection
                .prepare_cached(
                    "REPLACE INTO jobs (place, client, id, digest, request, prompt, addresses,
                         accepted_up, accepted_wall, expires_up, expires_wall, attempts, crashes, suspect)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)",
                )?
                .execute(params![
                    signed(*place),
                    client(&job.key),
                    job.key.id,
                    job.body_digest,
                    json(&RequestRow::of(job, *left_out_tokens)),
                    symbols_to_bytes(prompt),
                    addresses(std::slice::from_ref(&job.reply)),
                    accepted.up_ms,
                    accepted.wall_ms,
                    expires.up_ms,
                    expires.wall_ms,
                    tries.attempts,
                    tries.crashes,
                    tries.suspect,
                ])?;
            blobs::add(connection, *place, &job.images)?;
        }
        Change::Addresses { key, addresses: all } => {
            connection
                .prepare_cached("UPDATE jobs SET addresses = ?3 WHERE client = ?1 AND id = ?2")?
                .execute(params![client(key), key.id, addresses(all)])?;
        }
        Change::Start { key, attempt } => {
            connection
                .prepare_cached("UPDATE jobs SET running = 1, attempts = ?3 WHERE client = ?1 AND id = ?2")?
                .execute(params![client(key), key.id, attempt])?;
        }
        Change::Pause { key } => {
            connection
                .prepare_cached("UPDATE jobs SET running = 0 WHERE client = ?1 AND id = ?2")?
                .execute(params![client(key), key.id])?;
        }
        Change::Settle { key, body, until } => {
            blobs::release(connection, key)?;
            connection
                .prepare_cached(
                    "UPDATE jobs SET outcome = ?3, until_up = ?4, until_wall = ?5, running = 0, suspect = 0,
                         prompt = x'', addresses = '[]'
                     WHERE client = ?1 AND id = ?2",
                )?
                .execute(params![
                    client(key),
                    key.id,
                    BodyRow::of(body).map(|body| json(&body)),
                    until.up_ms,
                    until.wall_ms
                ])?;
        }
        Change::Post(reply) => {
            if let (Some(delivery), Some(message)) = (reply.delivery, MessageRow::of(reply)) {
                connection
                    .prepare_cached("REPLACE INTO outbox VALUES (?1, ?2)")?
                    .execute(params![signed(delivery), json(&message)])?;
            }
        }
        Change::Delivered(delivery) => {
            connection
                .prepare_cached("DELETE FROM outbox WHERE delivery = ?1")?
                .execute([signed(*delivery)])?;
        }
        Change::Forget(key) => {
            blobs::release(connection, key)?;
            connection
                .prepare_cached("DELETE FROM jobs WHERE client = ?1 AND id = ?2")?
                .execute(params![client(key), key.id])?;
        }
        Change::Received(receipt) => {
            connection
                .prepare_cached("REPLACE INTO receipts VALUES (?1, ?2, ?3)")?
                .execute(params![receipt.packet_id, signed(receipt.number), receipt.mark])?;
        }
        Change::ForgetReceipts => connection.execute_batch(FORGET_RECEIPTS)?,
        Change::LinkNote(note) => {
            connection
                .prepare_cached("REPLACE INTO meta VALUES ('link', ?1)")?
                .execute([note])?;
        }
        Change::Rule(change) => rules::apply(connection, change)?,
    }
    Ok(())
}

pub(super) fn addresses(addresses: &[ReplyAddress]) -> String {
    let rows: Vec<AddressRow> = addresses.iter().map(AddressRow::from).collect();
    json(&rows)
}
