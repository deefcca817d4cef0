//! The files of jobs' images: a row for each file, however many jobs need it, until none does.

use std::collections::BTreeMap;
use std::sync::Arc;

use phi_edge_api::{Detail, JobKey, RequestImage};
use rusqlite::{Connection, OptionalExtension, params};
use sha2::{Digest as _, Sha256};

use super::value::{client, for_each_row, signed, unsigned};

/// The statements that empty the tables of files.
pub(crate) const CLEAR_BLOBS: &str = "DELETE FROM job_blobs; DELETE FROM blobs;";

/// The statements that remove what no open job needs. A crash leaves none: they are for files that were repaired by hand.
pub(super) const SWEEP_BLOBS: &str = "
    DELETE FROM job_blobs WHERE place NOT IN (SELECT place FROM jobs WHERE outcome IS NULL);
    DELETE FROM blobs WHERE digest NOT IN (SELECT digest FROM job_blobs);";

/// The images of jobs, by the jobs' places and their positions in the jobs.
pub(super) type StoredImages = BTreeMap<u64, BTreeMap<usize, RequestImage>>;

/// Adds the files of a job.
pub(super) fn add(connection: &Connection, place: u64, images: &[RequestImage]) -> rusqlite::Result<()> {
    for (position, image) in images.iter().enumerate() {
        let digest = Sha256::digest(&image.file);
        connection
            .prepare_cached("INSERT OR IGNORE INTO blobs (digest, file) VALUES (?1, ?2)")?
            .execute(params![digest.as_slice(), &*image.file])?;
        connection
            .prepare_cached(
                "REPLACE INTO job_blobs (place, position, digest, detail) VALUES (?1, ?2, ?3, ?4)",
            )?
            .execute(params![
                signed(place),
                signed(position as u64),
                digest.as_slice(),
                detail_word(image.detail)
            ])?;
    }
    Ok(())
}

/// Removes the files of a job that no other job needs.
pub(super) fn release(connection: &Connection, key: &JobKey) -> rusqlite::Result<()> {
    let place: Option<i64> = connection
        .prepare_cached("SELECT place FROM jobs WHERE client = ?1 AND id = ?2")?
        .query_row(params![client(key), key.id], |row| row.get(0))
        .optional()?;
    let Some(place) = place else { return Ok(()) };
    let digests: Vec<Vec<u8>> = connection
        .prepare_cached("SELECT DISTINCT digest FROM job_blobs WHERE place = ?1")?
        .query_map([place], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    if digests.is_empty() {
        return Ok(());
    }
    connection
        .prepare_cached("DELETE FROM job_blobs WHERE place = ?1")?
        .execute([place])?;
    for digest in digests {
        connection
            .prepare_cached(
                "DELETE FROM blobs WHERE digest = ?1 AND NOT EXISTS (SELECT 1 FROM job_blobs WHERE digest = ?1)",
            )?
            .execute([digest])?;
    }
    Ok(())
}

/// Reads the images of open jobs into `images`. One whose file is damaged is left out, and logged.
pub(super) fn read(connection: &Connection, order: &str, images: &mut StoredImages) -> rusqlite::Result<()> {
    for_each_row(
        connection,
        &format!(
            "SELECT place, position, detail, digest, file FROM job_blobs JOIN blobs USING (digest)
             ORDER BY place {order}"
        ),
        |row| {
            let place = unsigned(row.get(0)?);
            let position = usize::try_from(row.get::<_, i64>(1)?).unwrap_or(usize::MAX);
            let word: String = row.get(2)?;
            let (digest, file): (Vec<u8>, Vec<u8>) = (row.get(3)?, row.get(4)?);
            let detail = detail_of(&word).filter(|_| Sha256::digest(&file).as_slice() == digest);
            let Some(detail) = detail else {
                tracing::error!(place, position, "a stored image is damaged");
                return Ok(());
            };
            let file = Arc::from(file);
            images
                .entry(place)
                .or_default()
                .insert(position, RequestImage { file, detail });
            Ok(())
        },
    )
}

/// Returns the images of the job at `place`, which had `count`: all of them, or `None` where one is missing.
pub(super) fn take(images: &mut StoredImages, place: u64, count: usize) -> Option<Vec<RequestImage>> {
    let stored = images.remove(&place).unwrap_or_default();
    if stored.len() != count || stored.keys().last().is_some_and(|last| *last >= count) {
        tracing::error!(
            place,
            count,
            stored = stored.len(),
            "images of a stored job are lost"
        );
        return None;
    }
    Some(stored.into_values().collect())
}

fn detail_word(detail: Detail) -> &'static str {
    match detail {
        Detail::Low => "low",
        Detail::Auto => "auto",
        Detail::High => "high",
    }
}

fn detail_of(word: &str) -> Option<Detail> {
    [Detail::Low, Detail::Auto, Detail::High]
        .into_iter()
        .find(|detail| detail_word(*detail) == word)
}

#[cfg(test)]
mod tests;
