//! `phi-edge check`: a check of everything that the daemon needs.

mod kv_capacity;

use std::time::Duration;

use clap::Args;
use phi_edge_config::Config;
use phi_edge_engine::Engine;
use phi_edge_models::ModelDir;
use phi_edge_mqtt::{Client, ClientOptions};
use phi_edge_onnx::{Isa, Library, OnnxDecoder};
use phi_edge_rules::Rule;

use crate::exit::{Exit, Fault};
use crate::setup::args::ConfigArgs;
use crate::setup::link;
use crate::setup::model::ModelSetup;
use crate::setup::pinned_prefixes::UnkeptPrefix;
use crate::setup::provider_lines;
use crate::setup::rule_conversion;
use crate::setup::settings;
use crate::terminal;

#[derive(Args)]
pub(crate) struct CheckArgs {
    #[command(flatten)]
    pub(crate) config: ConfigArgs,
    /// Leave out the broker.
    #[arg(long)]
    pub(crate) offline: bool,
}

/// Prints one line for each check, and fails with the exit code of the first fault.
pub(crate) fn check(args: &CheckArgs) -> Result<(), Fault> {
    let mut report = CheckReport::default();
    let Some(loaded) = report.add(
        "config",
        settings::load(&args.config).map(|loaded| {
            let files: Vec<_> = loaded
                .files
                .iter()
                .map(|file| file.display().to_string())
                .collect();
            let said = if files.is_empty() {
                "built-in defaults".to_owned()
            } else {
                files.join(", ")
            };
            (loaded, said)
        }),
    ) else {
        return report.end();
    };
    for warning in &loaded.warnings {
        warn("config", warning);
    }
    let config = &loaded.config;
    if !config.rules.is_empty() {
        let names = |rules: Vec<Rule>| {
            let names: Vec<_> = rules.into_iter().map(|rule| rule.name).collect();
            ((), names.join(", "))
        };
        report.add("rules", rule_conversion::convert_all(config).map(names));
    }
    check_model(&mut report, &ModelSetup::from_config(config, &[]));
    check_link(&mut report, config, args.offline);
    report.end()
}

/// Checks the model, the library, and whether a provider runs the model.
fn check_model(report: &mut CheckReport, setup: &ModelSetup) {
    let model = report.add("model", open(setup));
    let library = report.add(
        "library",
        Library::find(setup.library.as_deref())
            .map(|library| {
                (
                    (),
                    format!("{} ({})", library.description(), library.path().display()),
                )
            })
            .map_err(Fault::from),
    );
    if phi_edge_onnx::is_slow_processor() {
        let slow = "this processor has no AVX2: ONNX Runtime's kernels alone compute, several times slower than on one that has it";
        warn("processor", slow);
    }
    report.add("cores", Ok(((), setup.cores.to_string())));
    if let (Some(model), Some(())) = (model, library) {
        let loaded = report.add(
            "provider",
            setup
                .load_over(&model, |decoder| decoder)
                .map(|(engine, computed_by)| {
                    let decoder = engine.decoder();
                    let provider = provider_lines::chosen(decoder.provider_report());
                    let isa = decoder.isa().map_or("none", Isa::as_str);
                    let said = format!(
                        "{provider}, instruction set {isa}, context of {} tokens",
                        engine.context()
                    );
                    ((engine, computed_by), said)
                }),
        );
        if let Some((mut engine, computed_by)) = loaded {
            let chosen = engine.decoder().provider_report();
            for line in provider_lines::refused(chosen, setup.decoder.provider) {
                warn("provider", &line);
            }
            if let Some(line) = provider_lines::nodes(chosen) {
                report.add("nodes", Ok(((), line)));
            }
            if let Some(line) = provider_lines::products(chosen) {
                report.add("products", Ok(((), line)));
            }
            let configured = setup.decoder.kv_memory.is_some();
            for line in kv_capacity::lines(&engine, model.config(), configured) {
                report.add("memory", Ok(((), line)));
            }
            if let Some(warning) = setup.kv_memory_warning() {
                warn("memory", &warning);
            }
            check_prefixes(report, setup, &model, &mut engine, &computed_by);
        }
    }
}

/// Checks whether there is room for the pinned prefixes.
fn check_prefixes(
    report: &mut CheckReport,
    setup: &ModelSetup,
    model: &ModelDir,
    engine: &mut Engine<OnnxDecoder>,
    computed_by: &[String],
) {
    if setup
        .pinned
        .as_ref()
        .is_none_or(|(prefixes, _)| prefixes.is_empty())
    {
        return;
    }
    let unkept = match setup.pin(engine, model, computed_by) {
        Ok(unkept) => unkept,
        Err(fault) => {
            report.add("prefixes", Err::<((), String), _>(fault));
            return;
        }
    };
    for UnkeptPrefix { of, tokens, failure } in unkept {
        let advice = "its prompts are computed whole; raise runtime.kv_memory or shorten it";
        warn(
            "prefixes",
            &format!("{of} ({tokens} tokens) is not kept: {failure}; {advice}"),
        );
    }
    let context = engine.context();
    let said = format!("pinned; beside them a context of {context} tokens");
    report.add("prefixes", Ok(((), said)));
}

/// Checks the files of TLS and, unless `offline`, the connection to the broker.
fn check_link(report: &mut CheckReport, config: &Config, offline: bool) {
    match link::checked_tls(config) {
        Ok(None) => {}
        Ok(Some(tls)) => {
            let checked = tls
                .check()
                .map(|()| ((), "certificates and key can be read".to_owned()));
            report.add(
                "tls",
                checked.map_err(|error| Fault::new(Exit::Config, error.to_string())),
            );
        }
        Err(fault) => note("tls", &fault),
    }
    if !offline {
        report.add("broker", broker(config));
    } else if let Err(fault) =
        link::require_credential("mqtt.password_file", config.mqtt.password_file.as_deref())
    {
        note("broker", &fault);
    }
}

/// Prints what is right to run with, and needs attention.
fn warn(what: &str, said: &str) {
    println!("warn   {what:9} {}", terminal::text(said));
}

/// Prints what can't be checked in this process, which is no fault.
fn note(what: &str, said: &Fault) {
    println!("note   {what:9} {}", terminal::text(&said.to_string()));
}

fn open(setup: &ModelSetup) -> Result<(ModelDir, String), Fault> {
    let model = ModelDir::open(&setup.model)?;
    model.text()?;
    let said = format!("{} ({})", model.name(), model.path().display());
    Ok((model, said))
}

fn broker(config: &Config) -> Result<((), String), Fault> {
    if config.mqtt.embedded {
        return Ok((
            (),
            format!("runs in the daemon, on {}", config.mqtt.embedded_listen),
        ));
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Fault::failed)?;
    let link = link::link(config, None)?;
    let said = format!("{}:{} lets us in", link.host, link.port);
    // A different client id, so that a running daemon keeps its session.
    let options = ClientOptions {
        client_id: format!("{}-check-{}", link.client_id, std::process::id()),
        host: link.host,
        port: link.port,
        credentials: link.credentials,
        tls: link.tls,
        session: None,
    };
    let connect = async {
        let client = tokio::time::timeout(Duration::from_secs(10), Client::connect(options)).await;
        match client {
            Ok(Ok(client)) => {
                client.close().await;
                Ok(((), said))
            }
            Ok(Err(error)) => Err(Fault::new(Exit::Unavailable, error.to_string())),
            Err(_) => Err(Fault::new(Exit::Unavailable, "the broker does not answer")),
        }
    };
    runtime.block_on(connect)
}

/// The result of the checks.
#[derive(Default)]
struct CheckReport {
    first: Option<Fault>,
}

impl CheckReport {
    fn add<T>(&mut self, what: &str, outcome: Result<(T, String), Fault>) -> Option<T> {
        match outcome {
            Ok((value, said)) => {
                println!("ok     {what:9} {}", terminal::text(&said));
                Some(value)
            }
            Err(fault) => {
                println!("fault  {what:9} {}", terminal::text(&fault.to_string()));
                self.first.get_or_insert(fault);
                None
            }
        }
    }

    fn end(self) -> Result<(), Fault> {
        match self.first {
            None => Ok(()),
            Some(fault) => Err(Fault::new(fault.exit, "the check found faults, listed above")),
        }
    }
}
