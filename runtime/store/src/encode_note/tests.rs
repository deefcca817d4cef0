#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;

fn work(n: u8) -> WorkDigest {
    [n; 32]
}

fn open(folder: &Path) -> Arc<Mutex<EncodeNote>> {
    Arc::new(Mutex::new(EncodeNote::open(Some(folder))))
}

fn standing(note: &Arc<Mutex<EncodeNote>>, n: u8) -> Standing {
    note.lock().standing(&work(n))
}

/// Ends the process of `note`: its file is closed, and nothing is put in order.
fn die(note: &Arc<Mutex<EncodeNote>>) {
    note.lock().file = None;
}

#[test]
fn only_what_was_alone_at_three_deaths_is_given_up() {
    let folder = tempfile::tempdir().unwrap();
    let note = open(folder.path());
    std::mem::forget(enter(&note, work(1), false));
    std::mem::forget(enter(&note, work(2), false));
    drop(enter(&note, work(3), false));
    die(&note);
    for deaths in 0..3 {
        let note = open(folder.path());
        assert_eq!(standing(&note, 1), Standing::Suspect, "{deaths}");
        assert_eq!(standing(&note, 3), Standing::Clear);
        if deaths == 0 {
            assert_eq!(standing(&note, 2), Standing::Suspect);
            drop(enter(&note, work(2), true));
        }
        assert_eq!(standing(&note, 2), Standing::Clear);
        std::mem::forget(enter(&note, work(1), true));
        die(&note);
    }
    let note = open(folder.path());
    let given_up = |first| Standing::GivenUp { deaths: 3, first };
    assert_eq!(standing(&note, 1), given_up(true));
    note.lock().told(&work(1));
    die(&note);
    assert_eq!(standing(&open(folder.path()), 1), given_up(false));
}

#[test]
fn an_orderly_end_suspects_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let note = open(folder.path());
    let entry = enter(&note, work(1), false);
    note.lock().close();
    drop(entry);
    assert_eq!(standing(&open(folder.path()), 1), Standing::Clear);
    assert_eq!(
        std::fs::read_to_string(folder.path().join(FILE_NAME)).unwrap(),
        ""
    );
}

#[test]
fn a_damaged_file_costs_what_is_damaged() {
    let folder = tempfile::tempdir().unwrap();
    std::mem::forget(enter(&open(folder.path()), work(7), false));
    let path = folder.path().join(FILE_NAME);
    let mut text = std::fs::read_to_string(&path).unwrap();
    text.push_str("a 9 ab\n\u{0}\n");
    std::fs::write(&path, text).unwrap();
    assert_eq!(standing(&open(folder.path()), 7), Standing::Suspect);
    std::fs::write(&path, [0xFF, 0xFE]).unwrap();
    assert_eq!(standing(&open(folder.path()), 7), Standing::Clear);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Processes that are killed at random moments: what is given up was alone at three of their deaths, and what was
    /// in hand at the last death is a suspect.
    #[test]
    fn kills_at_random_moments(lives in prop::collection::vec(prop::collection::vec((0u8..6, any::<bool>()), 0..8), 1..12)) {
        let folder = tempfile::tempdir().unwrap();
        let mut alone_at_death: HashMap<u8, u32> = HashMap::new();
        for life in lives {
            let note = open(folder.path());
            let mut open_entries: Vec<(u8, bool, NoteEntry)> = Vec::new();
            for (n, ends) in life {
                if ends {
                    open_entries.pop();
                    continue;
                }
                let alone = match standing(&note, n) {
                    Standing::GivenUp { .. } => {
                        prop_assert!(alone_at_death.get(&n).is_some_and(|deaths| *deaths >= MAX_DEATHS));
                        continue;
                    }
                    Standing::Suspect => true,
                    Standing::Clear => false,
                };
                if alone {
                    open_entries.clear();
                }
                if open_entries.iter().all(|(_, alone, _)| !alone) {
                    open_entries.push((n, alone, enter(&note, work(n), alone)));
                }
            }
            for (n, alone, _) in &open_entries {
                if *alone {
                    *alone_at_death.entry(*n).or_default() += 1;
                }
            }
            let in_hand: Vec<u8> = open_entries.iter().map(|(n, ..)| *n).collect();
            std::mem::forget(open_entries);
            die(&note);
            let next = open(folder.path());
            for n in in_hand {
                prop_assert_ne!(standing(&next, n), Standing::Clear);
            }
            die(&next);
        }
    }
}
