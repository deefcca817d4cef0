//! The Windows service, as far as wine's service manager goes: it starts and stops services, notices the end of their processes, and
//! restarts none.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use phi_edge_tests::{Mosquitto, NODE, client, state};

use crate::conversation::ask;
use crate::wine::{Wine, eventually, output, said, staged};

/// The program that controls services.
const SC: &str = r"C:\windows\system32\sc.exe";

pub(crate) async fn run(wine: &Wine) -> Result<()> {
    let broker = Mosquitto::start().context("mosquitto is needed")?;
    let folder = wine.program_data()?;
    configure(&folder, broker.port, "")?;
    let registered = wine.run(&["service", "install"])?;
    ensure!(registered.contains("is registered"), "{registered}");
    println!(
        "ok   service install: {}",
        registered.lines().last().unwrap_or_default()
    );

    let mut client = client(broker.port).await;
    control(wine, "start")?;
    state(&mut client, "ready").await;
    ask(&mut client, "service").await?;
    ensure!(is(wine, "RUNNING")?, "{}", query(wine)?);
    println!("ok   service start: it answers");
    control(wine, "stop")?;
    state(&mut client, "draining").await;
    eventually("the service's end", || is(wine, "STOPPED")).await?;
    ensure!(
        !folder.join("store/running").exists(),
        "an orderly end leaves no crash marker"
    );
    println!("ok   service stop: an orderly end");

    control(wine, "start")?;
    state(&mut client, "ready").await;
    let processes = wine.processes(&["phi-edge.exe", "service", "run"])?;
    ensure!(!processes.is_empty(), "the service has no process");
    for process in processes {
        // It may be gone already, with another one.
        Command::new("kill")
            .args(["-s", "KILL", &process.to_string()])
            .status()?;
    }
    state(&mut client, "offline").await;
    eventually("the service's end", || is(wine, "STOPPED")).await?;
    control(wine, "start")?;
    state(&mut client, "ready").await;
    let log = log(&folder)?;
    ensure!(log.contains("the process before this one crashed"), "{log}");
    ask(&mut client, "after").await?;
    control(wine, "stop")?;
    eventually("the service's end", || is(wine, "STOPPED")).await?;
    println!("ok   service crash: noticed at the next start, which answers");

    configure(&folder, broker.port, "limits.queue = \"none\"\n")?;
    control(wine, "start")?;
    eventually("the service's end", || is(wine, "STOPPED")).await?;
    let log = self::log(&folder)?;
    ensure!(log.contains("exit=78") && log.contains("limits.queue"), "{log}");
    println!("ok   service with a wrong configuration: stopped, and the log says why");

    let removed = wine.run(&["service", "uninstall"])?;
    ensure!(removed.contains("is removed"), "{removed}");
    // Other parts run without configuration.
    wine.program_data()?;
    println!("ok   service uninstall");
    Ok(())
}

fn configure(folder: &Path, port: u16, more: &str) -> Result<()> {
    let text = format!(
        "node.name = \"{NODE}\"\nmqtt.host = \"127.0.0.1\"\nmqtt.port = {port}\nruntime.provider = \"cpu\"\n\
         model.path = '{}'\n{more}",
        staged("models/demo")
    );
    Ok(std::fs::write(folder.join("config.toml"), text)?)
}

fn control(wine: &Wine, control: &str) -> Result<()> {
    let output = output(wine.windows(SC).args([control, "phi-edge"]))?;
    ensure!(output.status.success(), "sc {control}: {}", said(&output));
    Ok(())
}

fn query(wine: &Wine) -> Result<String> {
    Ok(said(&output(wine.windows(SC).args(["query", "phi-edge"]))?))
}

fn is(wine: &Wine, state: &str) -> Result<bool> {
    Ok(query(wine)?.contains(state))
}

fn log(folder: &Path) -> Result<String> {
    Ok(std::fs::read_to_string(folder.join("log/phi-edge.log"))?)
}
