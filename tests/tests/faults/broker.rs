//! What happens to the broker and the way to it.

use std::process::Command;
use std::time::Duration;

use phi_edge_tests::{question, skip};

use super::support::{Copies, Stage, rounds};

const REQUESTS: usize = 6;

async fn ask_some(stage: &mut Stage) {
    for n in 0..REQUESTS {
        stage.field.ask(&format!("q{n}"), question(200)).await;
    }
}

#[tokio::test]
async fn the_broker_is_killed_and_restarted() {
    rounds("broker kill -9 and restart", Copies::Allowed, async || {
        let mut stage = Stage::new(&["runtime.slots=1"]).await?;
        ask_some(&mut stage).await;
        let moment = stage.chance.ms(600);
        stage.field.listen(moment).await;
        stage.broker.kill();
        stage.broker.start_again();
        Some(stage.field.settle().await)
    })
    .await;
}

#[tokio::test]
async fn the_broker_is_away_for_a_while() {
    rounds("broker gone for a while", Copies::Allowed, async || {
        let mut stage = Stage::new(&["runtime.slots=1"]).await?;
        ask_some(&mut stage).await;
        let moment = stage.chance.ms(600);
        stage.field.listen(moment).await;
        stage.field.leave();
        stage.broker.stop();
        // A minute in the long form; here long enough for several attempts.
        let away = if std::env::var_os("PHI_EDGE_FAULT_ROUNDS").is_some() {
            60
        } else {
            3
        };
        tokio::time::sleep(Duration::from_secs(away)).await;
        stage.broker.start_again();
        Some(stage.field.settle().await)
    })
    .await;
}

#[tokio::test]
async fn the_broker_forgets_the_session() {
    rounds("session lost at the broker", Copies::Allowed, async || {
        let mut stage = Stage::new(&["runtime.slots=1"]).await?;
        ask_some(&mut stage).await;
        // Only what the daemon has taken is promised: the broker forgets the rest.
        stage
            .field
            .listen_until("a first answer", |field| field.answered() > 0)
            .await;
        let mut accepted = 0;
        while accepted < REQUESTS {
            accepted = stage.daemon().log().matches("job accepted").count();
            stage.field.listen(Duration::from_millis(10)).await;
        }
        stage.field.settle().await;
        stage.broker.kill();
        std::fs::remove_file(stage.broker.folder().join("mosquitto.db")).unwrap();
        stage.broker.start_again();
        // The subscriptions are gone with the session: the daemon makes them again.
        let connections = |log: &str| log.matches("connected").count();
        while connections(&stage.daemon().log()) < 2 {
            stage.field.listen(Duration::from_millis(20)).await;
        }
        stage.field.listen(Duration::from_millis(300)).await;
        stage.field.ask("after", question(8)).await;
        Some(stage.field.settle().await)
    })
    .await;
}

#[tokio::test]
async fn the_way_to_the_broker_swallows_packets() {
    rounds("half-open connection", Copies::Allowed, async || {
        let ditch = Ditch::new()?;
        let settings = ["runtime.slots=1", "mqtt.keep_alive=5s", "mqtt.host=10.213.0.1"];
        let mut stage = Stage::without_daemon("listener {port} 10.213.0.1\n", &settings).await?;
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec", &ditch.name])
            .arg(phi_edge_tests::phi_edge());
        stage.start_under(command, tempfile::tempdir().unwrap());
        stage.ready().await;
        ask_some(&mut stage).await;
        let moment = stage.chance.ms(600);
        stage.field.listen(moment).await;
        ditch.open();
        stage.field.ask("meanwhile", question(8)).await;
        // Longer than broker and daemon take to notice.
        stage.field.listen(Duration::from_secs(12)).await;
        ditch.close();
        Some(stage.field.settle().await)
    })
    .await;
}

/// The daemon in a network namespace of its own; the way to the broker can be made to swallow packets.
struct Ditch {
    name: String,
}

impl Ditch {
    fn ip(arguments: &[&str]) -> bool {
        Command::new("ip")
            .args(arguments)
            .output()
            .is_ok_and(|output| output.status.success())
    }

    fn new() -> Option<Self> {
        let name = format!("pe{}{}", std::process::id(), phi_edge_tests::unique());
        let ditch = Self { name };
        let ns = ditch.name.as_str();
        let (near, far) = (format!("n{ns}"), format!("f{ns}"));
        let made = Self::ip(&["netns", "add", ns])
            && Self::ip(&[
                "link", "add", &near, "type", "veth", "peer", "name", &far, "netns", ns,
            ])
            && Self::ip(&["addr", "add", "10.213.0.1/30", "dev", &near])
            && Self::ip(&["link", "set", &near, "up"])
            && Self::ip(&["-n", ns, "addr", "add", "10.213.0.2/30", "dev", &far])
            && Self::ip(&["-n", ns, "link", "set", &far, "up"]);
        if made {
            Some(ditch)
        } else {
            // Needs root and network namespaces, which not every machine gives.
            skip("no network namespaces: the half-open connection is not tested");
            None
        }
    }
}

impl Ditch {
    /// From now on packets are swallowed, in both directions, without a word.
    fn open(&self) {
        assert!(Self::ip(&[
            "-n",
            &self.name,
            "link",
            "set",
            &format!("f{}", self.name),
            "down"
        ]));
    }

    fn close(&self) {
        assert!(Self::ip(&[
            "-n",
            &self.name,
            "link",
            "set",
            &format!("f{}", self.name),
            "up"
        ]));
    }
}

impl Drop for Ditch {
    fn drop(&mut self) {
        Self::ip(&["netns", "del", &self.name]);
    }
}
