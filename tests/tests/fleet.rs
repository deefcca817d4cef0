//! Three daemons in one pool at mosquitto, one of them killed and brought back.
//!
//! One small round with the tests; `PHI_EDGE_FLEET_ROUNDS` and `PHI_EDGE_FLEET_REQUESTS` for more (`cargo xtask fleet`).

#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;
use std::time::Duration;

use phi_edge_tests::{Chance, Daemon, Field, Mosquitto, demo_model, has_library, question};
use tempfile::TempDir;

const NODES: usize = 3;

fn number(variable: &str, default: usize) -> usize {
    std::env::var(variable).map_or(default, |n| n.parse().unwrap())
}

fn start(broker: &Mosquitto, node: usize, folder: TempDir) -> Daemon {
    let name = format!("node.name=n{node}");
    let settings = [
        name.as_str(),
        "mqtt.pool=plant",
        "runtime.threads=1",
        "limits.queue=1000",
        "log.level=info",
    ];
    Daemon::start_in(folder, broker.port, &demo_model(), &settings)
}

async fn ready(field: &mut Field, starts: &BTreeMap<usize, String>) -> BTreeMap<usize, String> {
    let topic = |node: usize| format!("phi-edge/v1/n{node}/status");
    field
        .listen_until("three nodes", |field| {
            (0..NODES).all(|node| {
                field.statuses.get(&topic(node)).is_some_and(|status| {
                    status["state"] == "ready"
                        && starts.get(&node).is_none_or(|boot| status["boot_id"] != *boot)
                })
            })
        })
        .await;
    (0..NODES)
        .map(|node| {
            (
                node,
                field.statuses[&topic(node)]["boot_id"]
                    .as_str()
                    .unwrap()
                    .to_owned(),
            )
        })
        .collect()
}

#[tokio::test]
async fn a_pool_answers_everything_though_a_node_is_killed() {
    if !has_library() {
        return;
    }
    let lines = "allow_anonymous true\nmax_queued_messages 0\n";
    let Some(broker) = Mosquitto::with(lines, |_| {}) else {
        return;
    };
    let requests = number("PHI_EDGE_FLEET_REQUESTS", 60);
    for round in 0..number("PHI_EDGE_FLEET_ROUNDS", 1) {
        let mut field = Field::below(broker.port, "phi-edge/v1/pool/plant").await;
        let mut nodes: Vec<Option<Daemon>> = (0..NODES)
            .map(|node| Some(start(&broker, node, tempfile::tempdir().unwrap())))
            .collect();
        let boots = ready(&mut field, &BTreeMap::new()).await;
        // The pool is joined just after the status says that the node is ready.
        field.listen(Duration::from_millis(500)).await;
        let mut chance = Chance::random();
        let victim = chance.size(0..NODES);
        let moment = chance.size(0..requests);
        let mut folder = None;
        for n in 0..requests {
            field.ask(&format!("{round}-{n}"), question(8)).await;
            if n == moment {
                folder = nodes[victim].take().map(Daemon::kill);
            }
        }
        // What the living have is answered before the dead one is back.
        field.listen(Duration::from_secs(2)).await;
        nodes[victim] = Some(start(&broker, victim, folder.unwrap()));
        let others = boots.into_iter().filter(|(node, _)| *node == victim).collect();
        ready(&mut field, &others).await;
        let tally = field.settle().await;
        let mut by_node: BTreeMap<String, usize> = BTreeMap::new();
        for n in 0..requests {
            let outcome = field.outcome(&format!("{round}-{n}"));
            *by_node
                .entry(outcome["node"].as_str().unwrap_or("error").to_owned())
                .or_default() += 1;
        }
        println!("round {round}: n{victim} killed after {moment}; {by_node:?}; {tally:?}");
        assert_eq!(tally.answered, requests);
        assert_eq!(tally.errors, 0);
        assert_eq!(tally.differing, 0);
        let living: Vec<usize> = (0..NODES)
            .filter(|node| *node != victim)
            .map(|node| by_node.get(&format!("n{node}")).copied().unwrap_or(0))
            .collect();
        let even = living.iter().sum::<usize>().div_ceil(living.len());
        for count in living {
            assert!(
                count.abs_diff(even) * 10 <= even * 3,
                "not spread evenly: {by_node:?}"
            );
        }
    }
}

#[tokio::test]
async fn a_node_leaves_the_pool_before_it_drains() {
    if !has_library() {
        return;
    }
    let Some(broker) = Mosquitto::start() else { return };
    let mut field = Field::below(broker.port, "phi-edge/v1/pool/plant").await;
    let mut nodes: Vec<Daemon> = (0..NODES)
        .map(|node| start(&broker, node, tempfile::tempdir().unwrap()))
        .collect();
    ready(&mut field, &BTreeMap::new()).await;
    field.listen(Duration::from_millis(500)).await;
    nodes[0].signal("TERM");
    assert!(nodes[0].wait().success());
    for n in 0..12 {
        field.ask(&format!("q{n}"), question(8)).await;
    }
    let tally = field.settle().await;
    assert_eq!((tally.answered, tally.errors, tally.copies), (12, 0, 0));
    for n in 0..12 {
        assert_ne!(field.outcome(&format!("q{n}"))["node"], "n0");
    }
}
