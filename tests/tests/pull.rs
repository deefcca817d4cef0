//! Pulling models through faults: from a hub on this machine, by the library, as fast as it goes.

#![allow(clippy::unwrap_used, missing_docs)]

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use phi_edge_models::{
    Accelerator, Event, Hub, HubOptions, ModelLink, ModelStore, Outcome, Plan, Proxies, PullError,
    RetryPolicy, Source,
};
use phi_edge_tests::Chance;
use phi_edge_tests::hub::{Faults, HubFile, HubServer, Lasting, Manners, Repository};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const FOLDER: &str = "cpu_and_mobile/cpu-int4-block-32";

/// A repository as published ones are: several folders, a licence and a card at the root.
fn repository(seed: u64, weights: usize) -> Repository {
    let mut random = Chance::seeded(seed + 1);
    let mut file = |path: &str, size: usize, large: bool| HubFile {
        path: path.to_owned(),
        bytes: random.bytes(size),
        large,
    };
    Repository {
        name: "org/Phi-test-onnx".to_owned(),
        commit: COMMIT.to_owned(),
        licence: Some("mit".to_owned()),
        files: vec![
            file(".gitattributes", 90, false),
            file("LICENSE", 1078, false),
            file("README.md", 500, false),
            file(&format!("{FOLDER}/genai_config.json"), 300, false),
            file(&format!("{FOLDER}/empty.txt"), 0, false),
            file(&format!("{FOLDER}/model.onnx"), weights / 7, true),
            file(&format!("{FOLDER}/model.onnx.data"), weights, true),
            file(&format!("{FOLDER}/nested/tokenizer.json"), weights / 20, false),
            file("gpu/gpu-int4-block-32/genai_config.json", 300, false),
            file("gpu/gpu-int4-block-32/model.onnx", 500, true),
        ],
    }
}

fn retry() -> RetryPolicy {
    RetryPolicy {
        max_attempts: 16,
        initial_backoff: Duration::from_micros(200),
        max_backoff: Duration::from_millis(2),
        stall_timeout: Duration::from_secs(20),
        chunk_bytes: 64 << 10,
        ..RetryPolicy::default()
    }
}

fn options() -> HubOptions {
    HubOptions {
        mirror: None,
        token: None,
        proxies: Proxies::default(),
        retry: retry(),
        jobs: 3,
    }
}

fn plan(server: &HubServer, options: HubOptions) -> Result<(Hub, Plan), PullError> {
    let source = Source::parse(&server.repository())?;
    let hub = Hub::new(&source, options)?;
    let mut plan = hub.plan(&source, None, Accelerator::Cpu, &|_| {})?;
    "m".clone_into(&mut plan.name);
    Ok((hub, plan))
}

fn pull(server: &HubServer, shelf: &ModelStore, options: HubOptions) -> Result<Outcome, PullError> {
    let (hub, plan) = plan(server, options)?;
    hub.fetch(shelf, &plan, &|_| {})
}

/// Every file of the folder is there, byte for byte, and nothing else but manifest and licence.
fn assert_whole(directory: &Path, repository: &Repository) {
    let expected: Vec<(&str, &HubFile)> = repository
        .files
        .iter()
        .filter_map(|file| {
            let path = file.path.strip_prefix(FOLDER).map(|path| &path[1..]);
            Some((path.or((file.path == "LICENSE").then_some("LICENSE"))?, file))
        })
        .collect();
    for (path, file) in &expected {
        assert_eq!(std::fs::read(directory.join(path)).unwrap(), file.bytes, "{path}");
    }
    assert_eq!(ModelStore::verify(directory).unwrap(), []);
    let text = std::fs::read_to_string(directory.join("manifest.json")).unwrap();
    assert_eq!(text.matches("\"sha256\"").count(), expected.len(), "{text}");
    assert!(
        text.contains(COMMIT) && text.contains("\"licence\": \"mit\""),
        "{text}"
    );
}

fn old_version(shelf: &ModelStore) {
    let place = shelf.folder().join("m");
    std::fs::create_dir_all(&place).unwrap();
    std::fs::write(place.join("genai_config.json"), "old").unwrap();
}

fn is_old(directory: &Path) -> bool {
    std::fs::read_to_string(directory.join("genai_config.json")).is_ok_and(|text| text == "old")
}

/// Runs `check` for each number, eight at a time.
fn in_parallel(count: u64, check: impl Fn(u64) + Sync) {
    let next = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= count {
                        return;
                    }
                    check(seed);
                }
            });
        }
    });
}

#[test]
fn two_hundred_random_faults_end_in_a_verified_model_or_the_right_error() {
    let begun = Instant::now();
    let (faults, hit) = (AtomicU64::new(0), AtomicU64::new(0));
    in_parallel(200, |seed| {
        let folder = tempfile::tempdir().unwrap();
        let shelf = ModelStore::new(folder.path());
        if seed % 2 == 0 {
            old_version(&shelf);
        }
        let repository = repository(seed, 500_000);
        // One in ten never gets better, amid faults that do.
        let lasting = (seed % 10 == 9).then(|| match (seed / 10) % 4 {
            0 => Lasting::Wrong("model.onnx".to_owned()),
            1 => Lasting::Status("model.onnx.data".to_owned(), 404),
            2 => Lasting::Loop("tokenizer.json".to_owned()),
            _ => Lasting::Status("tokenizer.json".to_owned(), 503),
        });
        let manners = Manners {
            page: 3,
            ..Manners::default()
        };
        let plan_of_faults = Faults {
            seed: Some(seed),
            lasting: lasting.clone(),
        };
        let server = HubServer::start(repository.clone(), manners, plan_of_faults);
        let before = AtomicU64::new(0);
        let watch = |event: &Event<'_>| {
            if matches!(event, Event::Retry { .. }) {
                before.fetch_add(1, Ordering::Relaxed);
            }
        };
        let source = Source::parse(&server.repository()).unwrap();
        let hub = Hub::new(&source, options()).unwrap();
        let outcome = hub
            .plan(&source, None, Accelerator::Cpu, &watch)
            .and_then(|mut plan| {
                "m".clone_into(&mut plan.name);
                hub.fetch(&shelf, &plan, &watch)
            });
        faults.fetch_add(before.load(Ordering::Relaxed), Ordering::Relaxed);
        hit.fetch_add(u64::from(before.load(Ordering::Relaxed) > 0), Ordering::Relaxed);
        let Some(lasting) = lasting else {
            let outcome = outcome.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
            assert_whole(outcome.path(), &repository);
            assert_eq!(
                is_old(&folder.path().join("m.previous")),
                seed % 2 == 0,
                "seed {seed}"
            );
            return;
        };
        let error = outcome.expect_err(&format!("seed {seed}"));
        match (&lasting, &error) {
            (Lasting::Wrong(_), PullError::WrongContent { expected, found, .. }) => {
                assert!(expected.starts_with("sha256 ") && found.starts_with("sha256 ") && expected != found);
            }
            (Lasting::Status(_, 404), PullError::NotFound { .. }) => {}
            (Lasting::Loop(_), PullError::GivenUp { why, .. }) => assert!(!why.is_empty()),
            (Lasting::Status(_, 503), PullError::GivenUp { .. }) => {}
            _ => panic!("seed {seed}: {lasting:?} gave {error}"),
        }
        assert!(!error.to_string().contains('\n'), "{error}");
        // Nothing was switched.
        assert!(!folder.path().join("m.previous").exists());
        assert_eq!(folder.path().join("m").exists(), seed % 2 == 0);
        assert_eq!(is_old(&folder.path().join("m")), seed % 2 == 0);
    });
    let took = begun.elapsed();
    let (faults, hit) = (faults.into_inner(), hit.into_inner());
    println!("200 schedules, {hit} of them with faults that were met, {faults} retries, {took:?}");
    assert!(hit > 190 && faults > 1000, "{hit} {faults}");
}

#[test]
fn what_is_there_is_not_fetched_again() {
    let folder = tempfile::tempdir().unwrap();
    let shelf = ModelStore::new(folder.path());
    let old = repository(1, 300_000);
    let first = HubServer::start(old.clone(), Manners::default(), Faults::default());
    assert!(matches!(
        pull(&first, &shelf, options()).unwrap(),
        Outcome::Installed(_)
    ));
    assert!(first.redirected() > 5, "files come in pieces");
    let sent = first.sent_in_all();
    assert!(matches!(
        pull(&first, &shelf, options()).unwrap(),
        Outcome::Already(_)
    ));
    assert_eq!(first.sent_in_all(), sent);
    // A file that went bad is fetched again, and only that.
    let data = folder.path().join("m/model.onnx.data");
    let mut bytes = std::fs::read(&data).unwrap();
    bytes[1000] ^= 1;
    std::fs::write(&data, &bytes).unwrap();
    let faults = ModelStore::verify(&folder.path().join("m")).unwrap();
    assert_eq!(faults.len(), 1);
    assert!(
        faults[0]
            .to_string()
            .contains("model.onnx.data is wrong: expected sha256"),
        "{}",
        faults[0]
    );
    let outcome = pull(&first, &shelf, options()).unwrap();
    assert_whole(outcome.path(), &old);
    assert_eq!(first.sent("LICENSE"), 1078);
    assert_eq!(first.sent(&format!("{FOLDER}/model.onnx")), 300_000 / 7);
    assert_eq!(first.sent(&format!("{FOLDER}/model.onnx.data")), 600_000);

    // The next version has the same weights: they are linked.
    let mut new = old.clone();
    new.commit = COMMIT.replace('0', "f");
    new.files[3].bytes = b"another".to_vec();
    let second = HubServer::start(new.clone(), Manners::default(), Faults::default());
    pull(&second, &shelf, options()).unwrap();
    assert_eq!(second.sent(&format!("{FOLDER}/model.onnx.data")), 0);
    assert_eq!(
        std::fs::read(folder.path().join("m/genai_config.json")).unwrap(),
        b"another"
    );
    // And back.
    shelf.roll_back("m").unwrap();
    assert_whole(&folder.path().join("m"), &old);
    shelf.roll_back("m").unwrap();
    assert_eq!(
        std::fs::read(folder.path().join("m/genai_config.json")).unwrap(),
        b"another"
    );
}

#[test]
fn a_hub_that_names_other_hashes_for_a_known_commit_is_not_believed() {
    let folder = tempfile::tempdir().unwrap();
    let shelf = ModelStore::new(folder.path());
    let good = repository(1, 30_000);
    let server = HubServer::start(good.clone(), Manners::default(), Faults::default());
    pull(&server, &shelf, options()).unwrap();
    std::fs::remove_file(folder.path().join("m/model.onnx.data")).unwrap();
    for (index, hint) in [(6, "of the manifest"), (3, "sha256")] {
        let mut other = good.clone();
        other.files[index].bytes[0] ^= 1;
        let server = HubServer::start(other, Manners::default(), Faults::default());
        let error = pull(&server, &shelf, options()).unwrap_err();
        assert!(matches!(error, PullError::WrongContent { .. }), "{error}");
        assert!(error.to_string().contains(hint), "{error}");
    }
    pull(&server, &shelf, options()).unwrap();
    assert_whole(&folder.path().join("m"), &good);
}

#[test]
fn room_is_asked_for_first() {
    let folder = tempfile::tempdir().unwrap();
    let repository = repository(1, 300_000);
    let server = HubServer::start(repository.clone(), Manners::default(), Faults::default());
    let shelf = ModelStore::new(folder.path()).with_free_space(|_| Ok(Some(1_200_000)));
    let error = pull(&server, &shelf, options()).unwrap_err();
    assert!(matches!(error, PullError::Space { .. }), "{error}");
    assert!(
        error
            .to_string()
            .contains("1.4 MB more are needed and 1.2 MB are free"),
        "{error}"
    );
    assert_eq!(server.sent_in_all(), 0);
    // The version before gives way where that is enough.
    old_version(&shelf);
    std::fs::rename(folder.path().join("m"), folder.path().join("m.previous")).unwrap();
    let shelf = shelf.with_free_space(|folder| {
        Ok(Some(if folder.join("m.previous").exists() {
            1_000_000
        } else {
            2_000_000
        }))
    });
    let dropped = Mutex::new(0);
    let (hub, plan) = plan(&server, options()).unwrap();
    let outcome = hub.fetch(&shelf, &plan, &|event| {
        if matches!(event, Event::Dropped { .. }) {
            *dropped.lock().unwrap() += 1;
        }
    });
    assert_whole(outcome.unwrap().path(), &repository);
    assert_eq!(dropped.into_inner().unwrap(), 1);
}

#[test]
fn a_gated_repository_opens_to_its_token_which_stays_with_the_hub() {
    let manners = Manners {
        token: Some("hf_secret".to_owned()),
        ..Manners::default()
    };
    let server = HubServer::start(repository(1, 30_000), manners, Faults::default());
    let folder = tempfile::tempdir().unwrap();
    let shelf = ModelStore::new(folder.path());
    let error = pull(&server, &shelf, options()).unwrap_err();
    assert!(matches!(error, PullError::Refused { status: 401, .. }), "{error}");
    assert!(error.to_string().contains("HF_TOKEN"), "{error}");
    let token = Some("hf_secret".to_owned());
    pull(&server, &shelf, HubOptions { token, ..options() }).unwrap();
    assert!(server.redirected() > 0);
    assert_eq!(server.leaked_tokens(), 0);
}

#[test]
fn a_listing_that_leads_out_of_the_folder_is_refused() {
    let mut evil = repository(1, 3_000);
    evil.files.push(HubFile {
        path: format!("{FOLDER}/../../../evil"),
        bytes: b"x".to_vec(),
        large: true,
    });
    let server = HubServer::start(evil, Manners::default(), Faults::default());
    let folder = tempfile::tempdir().unwrap();
    let error = pull(&server, &ModelStore::new(folder.path().join("shelf")), options()).unwrap_err();
    assert!(matches!(error, PullError::Protocol { .. }), "{error}");
    assert!(!folder.path().join("evil").exists());
}

#[test]
fn two_pulls_of_one_model_do_not_meet() {
    let folder = tempfile::tempdir().unwrap();
    let shelf = ModelStore::new(folder.path());
    let server = HubServer::start(repository(1, 30_000), Manners::default(), Faults::default());
    let (hub, plan) = plan(&server, options()).unwrap();
    let refused = Mutex::new(None);
    let within = |_: &Event<'_>| {
        let mut refused = refused.lock().unwrap();
        if refused.is_none() {
            *refused = Some(hub.fetch(&shelf, &plan, &|_| {}).unwrap_err());
        }
    };
    hub.fetch(&shelf, &plan, &within).unwrap();
    let error = refused.into_inner().unwrap().unwrap();
    assert!(error.to_string().contains("at work"), "{error}");
}

#[test]
fn a_switch_that_was_cut_short_is_mended() {
    let folder = tempfile::tempdir().unwrap();
    let shelf = ModelStore::new(folder.path());
    let repository = repository(1, 30_000);
    let server = HubServer::start(repository.clone(), Manners::default(), Faults::default());
    pull(&server, &shelf, options()).unwrap();
    // Killed after the exchange: the old version still stands where the new one was.
    let switch = folder.path().join(".partial/m.switch");
    std::fs::create_dir_all(&switch).unwrap();
    std::fs::write(switch.join("genai_config.json"), "old").unwrap();
    assert!(matches!(
        pull(&server, &shelf, options()).unwrap(),
        Outcome::Already(_)
    ));
    assert!(is_old(&folder.path().join("m.previous")));
    // Killed between the two renames of a system that can't exchange: nothing is in place.
    std::fs::rename(folder.path().join("m"), &switch).unwrap();
    assert!(matches!(
        pull(&server, &shelf, options()).unwrap(),
        Outcome::Already(_)
    ));
    assert_whole(&folder.path().join("m"), &repository);
    let link = ModelLink::new(folder.path().join("model"));
    link.point_to(&shelf, "m").unwrap();
    assert!(
        shelf
            .remove("m", &link)
            .unwrap_err()
            .to_string()
            .contains("in use")
    );
}
