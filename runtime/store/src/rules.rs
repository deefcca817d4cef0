//! The tables of rules.

use rusqlite::{Connection, params};

use super::event_row::{MarkRow, OutputRow, PendingRow, ShownRow};
use super::file::{for_each_row, json, parse, signed, unsigned};
use phi_edge_rules::Time;
use phi_edge_rules::changes::{KeptMessage, PendingEvent, RestoredRules, RuleChange, WindowClose};
use phi_edge_rules::engine::MAX_DEDUPE_VALUES;

/// The time for which values of `dedupe` are kept, in milliseconds.
pub(super) const SEEN_RETENTION_MS: i64 = 24 * 3600 * 1000;

/// The statements that empty the tables.
pub(super) const CLEAR: &str = "DELETE FROM rule_messages; DELETE FROM rule_marks; DELETE FROM rule_events;
     DELETE FROM rule_seen;";

pub(super) fn apply(connection: &Connection, change: &RuleChange) -> rusqlite::Result<()> {
    match change {
        RuleChange::KeepMessage(message) => insert(connection, message),
        RuleChange::AddDedupeValue { rule, value, at } => {
            connection
                .prepare_cached("REPLACE INTO rule_seen VALUES (?1, ?2, ?3)")?
                .execute(params![rule, value, at.0])?;
            Ok(())
        }
        RuleChange::ForgetDedupeValues { rule, values } => {
            let mut statement =
                connection.prepare_cached("DELETE FROM rule_seen WHERE rule = ?1 AND value = ?2")?;
            for value in values {
                statement.execute([rule, value])?;
            }
            Ok(())
        }
        RuleChange::CloseWindow(closing) => close(connection, closing),
        RuleChange::SaveCheckpoint {
            rule,
            group,
            checkpoint,
        } => {
            connection
                .prepare_cached("REPLACE INTO rule_marks VALUES (?1, ?2, ?3)")?
                .execute(params![rule, group, json(&MarkRow::of(checkpoint))])?;
            Ok(())
        }
        RuleChange::DropCheckpoint { rule, group } => {
            connection
                .prepare_cached("DELETE FROM rule_marks WHERE rule = ?1 AND grp = ?2")?
                .execute([rule, group])?;
            Ok(())
        }
        RuleChange::RemoveRule { rule } => {
            for table in ["rule_marks", "rule_seen"] {
                connection
                    .prepare_cached(&format!("DELETE FROM {table} WHERE rule = ?1"))?
                    .execute([rule])?;
            }
            Ok(())
        }
        RuleChange::AddPendingEvent(event) => pending(connection, event),
        RuleChange::RemovePendingEvent { event_id } => {
            connection
                .prepare_cached("DELETE FROM rule_events WHERE event_id = ?1")?
                .execute([event_id])?;
            Ok(())
        }
        RuleChange::ForgetMessages(seqs) => forget(connection, seqs),
    }
}

fn insert(connection: &Connection, message: &KeptMessage) -> rusqlite::Result<()> {
    connection
        .prepare_cached("REPLACE INTO rule_messages VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?
        .execute(params![
            signed(message.seq),
            message.rule,
            message.group,
            message.arrived.0,
            message.topic,
            message.payload
        ])?;
    Ok(())
}

fn close(connection: &Connection, closing: &WindowClose) -> rusqlite::Result<()> {
    forget(connection, &closing.forget)?;
    connection
        .prepare_cached("REPLACE INTO rule_marks VALUES (?1, ?2, ?3)")?
        .execute(params![
            closing.rule,
            closing.group,
            json(&MarkRow::of(&closing.checkpoint))
        ])?;
    if let Some(event) = &closing.pending {
        pending(connection, event)?;
    }
    connection
        .prepare_cached("DELETE FROM rule_seen WHERE seen < ?1")?
        .execute([closing.checkpoint.last_seen.unwrap_or_default().0 - SEEN_RETENTION_MS])?;
    Ok(())
}

fn pending(connection: &Connection, pending: &PendingEvent) -> rusqlite::Result<()> {
    let shown: Vec<ShownRow> = pending.messages.iter().map(ShownRow::of).collect();
    connection
        .prepare_cached("REPLACE INTO rule_events VALUES (?1, ?2, ?3, ?4, ?5)")?
        .execute(params![
            pending.event.event_id,
            pending.event.window.end.0,
            json(&PendingRow::of(pending)),
            json(&OutputRow::of(&pending.output)),
            json(&shown)
        ])?;
    Ok(())
}

fn forget(connection: &Connection, seqs: &[u64]) -> rusqlite::Result<()> {
    let mut statement = connection.prepare_cached("DELETE FROM rule_messages WHERE seq = ?1")?;
    for seq in seqs {
        statement.execute([signed(*seq)])?;
    }
    Ok(())
}

/// Reads the tables into `rules`; `order` is `ASC` or `DESC`. Returns one result per table.
pub(super) fn read(
    connection: &Connection,
    order: &str,
    rules: &mut RestoredRules,
) -> Vec<rusqlite::Result<()>> {
    let RestoredRules {
        messages,
        checkpoints,
        pending,
        dedupe_values,
    } = rules;
    vec![
        for_each_row(
            connection,
            &format!(
                "SELECT seq, rule, grp, arrived, topic, payload FROM rule_messages ORDER BY seq {order}"
            ),
            |row| {
                messages.push(KeptMessage {
                    seq: unsigned(row.get(0)?),
                    rule: row.get(1)?,
                    group: row.get(2)?,
                    arrived: Time(row.get(3)?),
                    topic: row.get(4)?,
                    payload: row.get(5)?,
                });
                Ok(())
            },
        ),
        for_each_row(
            connection,
            &format!("SELECT rule, grp, mark FROM rule_marks ORDER BY rule {order}, grp {order}"),
            |row| {
                let mark = parse::<MarkRow>(&row.get::<_, String>(2)?);
                if let Some(mark) = mark {
                    checkpoints.push((row.get(0)?, row.get(1)?, mark.checkpoint()));
                }
                Ok(())
            },
        ),
        for_each_row(
            connection,
            &format!(
                "SELECT event, output, messages FROM rule_events ORDER BY ended {order}, LENGTH(event_id) {order}, event_id {order}"
            ),
            |row| {
                let event = parse::<PendingRow>(&row.get::<_, String>(0)?);
                let output = parse::<OutputRow>(&row.get::<_, String>(1)?);
                let shown = parse::<Vec<ShownRow>>(&row.get::<_, String>(2)?);
                if let (Some(event), Some(output), Some(shown)) = (event, output, shown) {
                    pending.extend(event.pending(output, shown));
                }
                Ok(())
            },
        ),
        for_each_row(
            connection,
            &format!(
                "SELECT rule, value, seen FROM (
                     SELECT rule, value, seen, ROW_NUMBER() OVER (PARTITION BY rule ORDER BY seen DESC) AS place
                     FROM rule_seen)
                 WHERE place <= {MAX_DEDUPE_VALUES} ORDER BY seen {order}"
            ),
            |row| {
                dedupe_values.push((row.get(0)?, row.get(1)?, Time(row.get(2)?)));
                Ok(())
            },
        ),
    ]
}

/// Adds what only `rest`, read from the other end, has.
pub(super) fn add_missing(rules: &mut RestoredRules, rest: RestoredRules) {
    use std::collections::HashSet;
    let known: HashSet<u64> = rules.messages.iter().map(|message| message.seq).collect();
    let missing = rest.messages.into_iter().rev();
    rules
        .messages
        .extend(missing.filter(|message| !known.contains(&message.seq)));
    let known: HashSet<(String, String)> = rules
        .checkpoints
        .iter()
        .map(|(r, g, _)| (r.clone(), g.clone()))
        .collect();
    let missing = rest.checkpoints.into_iter().rev();
    rules
        .checkpoints
        .extend(missing.filter(|(r, g, _)| !known.contains(&(r.clone(), g.clone()))));
    let known: HashSet<String> = rules.pending.iter().map(|p| p.event.event_id.clone()).collect();
    let missing = rest.pending.into_iter().rev();
    rules
        .pending
        .extend(missing.filter(|p| !known.contains(&p.event.event_id)));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> Connection {
        let mut connection = Connection::open_in_memory().unwrap();
        super::super::schema::migrate(&mut connection).unwrap();
        connection
    }

    fn restored(connection: &Connection) -> RestoredRules {
        let mut rules = RestoredRules::default();
        for outcome in read(connection, "ASC", &mut rules) {
            outcome.unwrap();
        }
        rules
    }

    fn see(connection: &Connection, rule: &str, value: &str, at: i64) {
        let seen = RuleChange::AddDedupeValue {
            rule: rule.to_owned(),
            value: value.to_owned(),
            at: Time(at),
        };
        apply(connection, &seen).unwrap();
    }

    #[test]
    fn values_are_kept_until_they_are_forgotten() {
        let connection = file();
        for (at, value) in [(1, "a"), (2, "b"), (3, "c")] {
            see(&connection, "r", value, at);
            see(&connection, "s", value, at);
        }
        let unseen = RuleChange::ForgetDedupeValues {
            rule: "r".to_owned(),
            values: vec!["a".to_owned(), "b".to_owned()],
        };
        apply(&connection, &unseen).unwrap();
        let values: Vec<String> = restored(&connection)
            .dedupe_values
            .into_iter()
            .map(|(rule, value, _)| rule + &value)
            .collect();
        assert_eq!(values, ["sa", "sb", "rc", "sc"]);
    }

    #[test]
    fn of_a_rule_that_is_gone_nothing_is_kept() {
        let connection = file();
        for rule in ["r", "s"] {
            see(&connection, rule, "a", 1);
            let mark = RuleChange::SaveCheckpoint {
                rule: rule.to_owned(),
                group: "g".to_owned(),
                checkpoint: phi_edge_rules::Checkpoint::default(),
            };
            apply(&connection, &mark).unwrap();
        }
        let rule = "r".to_owned();
        apply(&connection, &RuleChange::RemoveRule { rule }).unwrap();
        let rules = restored(&connection);
        assert_eq!((rules.dedupe_values.len(), rules.checkpoints.len()), (1, 1));
        assert_eq!(rules.checkpoints[0].0, "s");
    }

    #[test]
    fn no_more_values_are_read_than_are_remembered() {
        let connection = file();
        connection.execute_batch("BEGIN").unwrap();
        let most = i64::try_from(MAX_DEDUPE_VALUES).unwrap();
        for at in 0..most + 5 {
            see(&connection, "r", &at.to_string(), at);
        }
        see(&connection, "s", "x", 1);
        connection.execute_batch("COMMIT").unwrap();
        let seen = restored(&connection).dedupe_values;
        assert_eq!(seen.len(), MAX_DEDUPE_VALUES + 1);
        assert_eq!(seen[1], ("r".to_owned(), "5".to_owned(), Time(5)));
    }
}
