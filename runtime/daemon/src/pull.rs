//! `phi-edge pull`: fetches a model, or takes one in from a folder.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use clap::Args;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use phi_edge_models::{
    Accelerator, DEFAULT_HUB, Event, Hub, HubOptions, ModelDir, Outcome, Plan, Proxies, PullError,
    RetryPolicy, Size, Source,
};

use crate::exit::{Exit, Fault};
use crate::models::ShelfArgs;
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
    provider: For,
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
    shelf: ShelfArgs,
}

/// What a pulled model is to run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum For {
    Cpu,
    Cuda,
    Directml,
}

pub(crate) fn pull(args: &PullArgs) -> Result<(), Fault> {
    let (shelf, link) = args.shelf.open()?;
    let source = Source::parse(&args.source)?;
    let name = args.name.clone().unwrap_or_else(|| source.name());
    let progress = Progress::new();
    let watch = |event: &Event<'_>| progress.show(event);
    let outcome = if let Source::Folder(folder) = &source {
        Outcome::Installed(shelf.import_folder(folder, &name, &watch)?)
    } else {
        let hub = Hub::new(&source, options(args, &source)?)?;
        let accelerator = match args.provider {
            For::Cpu => Accelerator::Cpu,
            For::Cuda => Accelerator::Cuda,
            For::Directml => Accelerator::DirectMl,
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

/// Says what will be fetched, and under which licence, before the first byte.
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

/// Says at once what the daemon would say at its start.
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

/// The token of the file, else of the environment. The environment's is meant for the well-known hub: an address of
/// another host, pasted from somewhere, must not get it; a mirror that the operator names stands in for that hub.
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

impl From<PullError> for Fault {
    fn from(error: PullError) -> Self {
        let exit = match &error {
            PullError::Usage { .. } => Exit::Usage,
            PullError::GivenUp { .. } => Exit::Unavailable,
            PullError::Model(_) | PullError::Damaged { .. } | PullError::NoSuchModel { .. } => Exit::Config,
            _ => Exit::Failed,
        };
        Self::new(exit, crate::exit::chain(&error))
    }
}

/// Bars on a terminal; elsewhere one line for each file that is there.
pub(crate) struct Progress {
    bars: Option<MultiProgress>,
    files: Mutex<HashMap<String, ProgressBar>>,
}

impl Progress {
    pub(crate) fn new() -> Self {
        Self {
            bars: std::io::stderr().is_terminal().then(MultiProgress::new),
            files: Mutex::new(HashMap::new()),
        }
    }

    pub(crate) fn show(&self, event: &Event<'_>) {
        match *event {
            Event::Kept { file, size } => self.line(&format!("{file}: there already, {}", Size(size))),
            Event::Begun { file, size, have } => self.begin(file, size, have),
            Event::At { file, bytes } => self.with(file, |bar| bar.set_position(bytes)),
            Event::Retry { file, why, wait } => {
                self.line(&format!("{file}: {why}; again in {:.1} s", wait.as_secs_f32()));
            }
            Event::Done { file } if self.bars.is_none() => self.line(&format!("{file}: done")),
            Event::Done { file } => self.with(file, ProgressBar::finish),
            Event::Dropped { name } => self.line(&format!(
                "{name}: the version before this one is removed for room"
            )),
        }
    }

    /// Takes the bars off the terminal, before anything else is printed.
    pub(crate) fn end(&self) {
        if let Some(bars) = &self.bars {
            let _ = bars.clear();
        }
    }

    fn begin(&self, file: &str, size: u64, have: u64) {
        let Some(bars) = &self.bars else {
            if have > 0 {
                self.line(&format!("{file}: goes on at {} of {}", Size(have), Size(size)));
            }
            return;
        };
        let style = ProgressStyle::with_template(
            "{msg:40!} {bar:30} {bytes:>10}/{total_bytes:10} {binary_bytes_per_sec} {eta}",
        );
        let bar = bars
            .add(ProgressBar::new(size))
            .with_message(file.to_owned())
            .with_position(have);
        if let Ok(style) = style {
            bar.set_style(style);
        }
        // What an earlier pull brought must not count for the speed.
        bar.reset_eta();
        self.files
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(file.to_owned(), bar);
    }

    fn with(&self, file: &str, act: impl FnOnce(&ProgressBar)) {
        if let Some(bar) = self
            .files
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(file)
        {
            act(bar);
        }
    }

    fn line(&self, text: &str) {
        match &self.bars {
            Some(bars) => drop(bars.println(text)),
            None => eprintln!("{text}"),
        }
    }
}
