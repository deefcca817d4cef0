//! `phi-edge pull`: fetches a model from a hub, or copies one from a folder.

use std::path::{Path, PathBuf};

use clap::Args;
use phi_edge_models::{
    Accelerator, DEFAULT_HUB, Event, Hub, HubOptions, ModelDir, Outcome, Plan, Proxies, RetryPolicy, Size,
    Source,
};

use crate::commands::model_store::ModelStoreArgs;
use crate::commands::progress::ProgressBars;
use crate::exit::{Exit, Fault};
use crate::terminal;

pub(crate) const EXAMPLES: &str = "Examples:
  phi-edge pull phi-3.5-mini --use
  phi-edge pull phi-3.5-mini --mirror https://hub.company.local
  phi-edge pull https://huggingface.co/ORG/REPOSITORY/tree/main/FOLDER --name my-model
  phi-edge pull ./my-export --name my-model

Short names: phi-3.5-mini, phi-3.5-vision. A pull that was interrupted goes on where it was.
HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY are obeyed.";

#[derive(Args)]
pub(crate) struct PullArgs {
    /// A short name, https://HOST/ORG/REPOSITORY[/tree/REVISION[/FOLDER]], or a folder.
    #[arg(value_name = "MODEL")]
    source: String,
    /// What the model is called here [default: the short name, the repository's or the folder's name].
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// The branch, tag or commit [default: main].
    #[arg(long, value_name = "REVISION")]
    revision: Option<String>,
    /// What it is to run on: repositories have a folder for each.
    #[arg(long, value_name = "NAME", value_enum, default_value = "cpu")]
    provider: TargetProvider,
    /// Stands in for the hub.
    #[arg(long, value_name = "URL", env = "PHI_EDGE_HUB")]
    mirror: Option<String>,
    /// Holds the hub's access token [default: the variable HF_TOKEN].
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Files fetched at once.
    #[arg(long, value_name = "N", default_value = "4", value_parser = clap::value_parser!(u8).range(1..=32))]
    jobs: u8,
    /// MiB asked for at a time: the most of a file that is fetched twice after an interruption.
    #[arg(long, value_name = "MIB", default_value = "8", value_parser = clap::value_parser!(u16).range(1..))]
    chunk: u16,
    /// Tries without progress before it gives up.
    #[arg(long, value_name = "N", default_value = "8", value_parser = clap::value_parser!(u32).range(1..))]
    tries: u32,
    /// Make it the daemon's model: point model.path to it.
    #[arg(long = "use")]
    use_it: bool,
    #[command(flatten)]
    shelf: ModelStoreArgs,
}

/// The execution provider that a pulled model is meant for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum TargetProvider {
    Cpu,
    Cuda,
    Directml,
}

pub(crate) fn pull(args: &PullArgs) -> Result<(), Fault> {
    let (shelf, link) = args.shelf.open()?;
    let source = Source::parse(&args.source)?;
    let name = args.name.clone().unwrap_or_else(|| source.name());
    let progress = ProgressBars::new();
    let watch = |event: &Event<'_>| progress.show(event);
    let outcome = if let Source::Folder(folder) = &source {
        Outcome::Installed(shelf.import_folder(folder, &name, &watch)?)
    } else {
        let hub = Hub::new(&source, options(args, &source)?)?;
        let accelerator = match args.provider {
            TargetProvider::Cpu => Accelerator::Cpu,
            TargetProvider::Cuda => Accelerator::Cuda,
            TargetProvider::Directml => Accelerator::DirectMl,
        };
        let mut plan = hub.plan(&source, args.revision.as_deref(), accelerator, &watch)?;
        plan.name.clone_from(&name);
        introduce(&plan);
        hub.fetch(&shelf, &plan, &watch)?
    };
    progress.end();
    let path = outcome.path().display();
    match &outcome {
        Outcome::Already(_) => println!("{name} is there already, every file verified: {path}"),
        Outcome::Installed(_) => println!("{name} is there, every file verified: {path}"),
    }
    remark(outcome.path());
    if args.use_it {
        link.point_to(&shelf, &name)?;
        println!(
            "{} points to it; the daemon takes it at its next start",
            link.path().display()
        );
    } else if !link.points_to(outcome.path()) {
        println!("phi-edge models use {name} makes it the daemon's model");
    }
    Ok(())
}

/// Prints what will be fetched, and under which licence, before the first byte.
fn introduce(plan: &Plan) {
    let origin = &plan.origin;
    let line = |text: &str| println!("{}", terminal::line(text));
    line(&format!("{}: {} of {}", plan.name, origin.repository, origin.hub));
    let folder = if origin.folder.is_empty() {
        "/"
    } else {
        &origin.folder
    };
    line(&format!("folder:  {folder}"));
    line(&format!("commit:  {}", origin.commit));
    let licence = plan.licence.as_deref().unwrap_or("the repository states none");
    line(&format!("licence: {licence}"));
    println!("size:    {} in {} files", Size(plan.bytes), plan.files());
}

/// Prints the fault that the daemon would report at its start, if the model has one.
fn remark(directory: &Path) {
    if let Err(error) = ModelDir::open(directory) {
        eprintln!(
            "phi-edge: this version can't run it: {}",
            terminal::text(&Fault::from(error).to_string())
        );
    }
}

fn options(args: &PullArgs, source: &Source) -> Result<HubOptions, Fault> {
    let mirror = args.mirror.as_ref().filter(|mirror| !mirror.is_empty());
    Ok(HubOptions {
        mirror: mirror.cloned(),
        token: token(args, source, mirror.is_some())?,
        proxies: Proxies::from_environment(|name| std::env::var(name).ok()),
        retry: RetryPolicy {
            max_attempts: args.tries,
            chunk_bytes: u64::from(args.chunk) << 20,
            ..RetryPolicy::default()
        },
        jobs: usize::from(args.jobs),
    })
}

/// The access token, from the file or else from the environment. The one of the environment is meant for the
/// well-known hub: another host must not get it, unless the operator named it as the mirror.
fn token(args: &PullArgs, source: &Source, mirrored: bool) -> Result<Option<String>, Fault> {
    if let Some(file) = &args.token_file {
        let text = std::fs::read_to_string(file).map_err(|error| {
            Fault::new(
                Exit::Config,
                format!("{}: can't be read: {error}", file.display()),
            )
        })?;
        return Ok(Some(text.trim().to_owned()).filter(|token| !token.is_empty()));
    }
    let other = matches!(source, Source::Hub { hub: Some(hub), .. } if hub != DEFAULT_HUB);
    let trusted = mirrored || !other;
    Ok(std::env::var("HF_TOKEN")
        .ok()
        .filter(|token| trusted && !token.is_empty()))
}
