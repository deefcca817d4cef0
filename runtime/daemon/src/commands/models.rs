//! `phi-edge models`: lists, verifies and selects the installed models.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use phi_edge_models::{Event, ModelLink, ModelStore, Size, StoredModel, known_models};

use crate::commands::model_store::ModelStoreArgs;
use crate::commands::progress::ProgressBars;
use crate::exit::{Exit, Fault};

#[derive(Args)]
pub(crate) struct ModelsArgs {
    #[command(subcommand)]
    action: ModelsAction,
    #[command(flatten)]
    shelf: ModelStoreArgs,
}

#[derive(Subcommand)]
enum ModelsAction {
    /// Name the models that are there, their size, licence and origin.
    List,
    /// Read every file again and hold it against the hashes noted when the model came.
    Verify {
        /// The model [default: the one in use].
        name: Option<String>,
    },
    /// Remove a model that is not in use, and the version before it.
    Remove {
        /// The model.
        name: String,
    },
    /// Make a model the daemon's, from its next start: point model.path to it.
    Use {
        /// The model.
        name: String,
    },
    /// Go back to the model that was used before; with NAME, to that model's version before its last pull.
    Rollback {
        /// The model whose version is to change.
        name: Option<String>,
    },
    /// Write a model to one file, to be carried to a machine without a network.
    #[command(allow_missing_positional = true)]
    Export {
        /// The model.
        #[arg(required_unless_present = "from", conflicts_with = "from")]
        name: Option<String>,
        /// The archive to write.
        file: PathBuf,
        /// A model directory anywhere, in place of NAME.
        #[arg(long, value_name = "DIR")]
        from: Option<PathBuf>,
    },
    /// Take in a model that `export` wrote.
    Import {
        /// The archive.
        file: PathBuf,
        /// What it is called here [default: as where it was exported].
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
        /// Make it the daemon's model.
        #[arg(long = "use")]
        use_it: bool,
    },
}

pub(crate) fn models(args: &ModelsArgs) -> Result<(), Fault> {
    let (shelf, link) = args.shelf.open()?;
    let progress = ProgressBars::new();
    let watch = |event: &Event<'_>| progress.show(event);
    match &args.action {
        ModelsAction::List => list(&shelf, &link)?,
        ModelsAction::Verify { name } => {
            let directory = match name {
                Some(name) => shelf.find(name)?,
                None => link.path().to_path_buf(),
            };
            verify(&directory)?;
        }
        ModelsAction::Remove { name } => {
            shelf.remove(name, &link)?;
            println!("{name} is removed");
        }
        ModelsAction::Use { name } => {
            link.point_to(&shelf, name)?;
            used(&link);
        }
        ModelsAction::Rollback { name: None } => {
            let directory = link.back(&shelf)?;
            println!("back to {}", directory.display());
            used(&link);
        }
        ModelsAction::Rollback { name: Some(name) } => {
            shelf.roll_back(name)?;
            println!("{name} is the version before again; once more takes that back");
        }
        ModelsAction::Export { name, file, from } => {
            let directory = match (name, from) {
                (_, Some(folder)) => folder.clone(),
                (Some(name), None) => shelf.find(name)?,
                (None, None) => return Err(Fault::new(Exit::Usage, "a model's NAME, or --from DIR")),
            };
            ModelStore::export(&directory, file, &watch)?;
            progress.end();
            let bytes = file.metadata().map_or(0, |metadata| metadata.len());
            println!("{}: {}", file.display(), Size(bytes));
        }
        ModelsAction::Import { file, name, use_it } => {
            let place = shelf.import_archive(file, name.as_deref(), &watch)?;
            progress.end();
            println!("every file verified: {}", place.display());
            if *use_it {
                let name = place.file_name().unwrap_or_default().to_string_lossy();
                link.point_to(&shelf, &name)?;
                used(&link);
            }
        }
    }
    Ok(())
}

fn used(link: &ModelLink) {
    println!(
        "{} is switched; the daemon takes it at its next start",
        link.path().display()
    );
}

fn list(shelf: &ModelStore, link: &ModelLink) -> Result<(), Fault> {
    let entries = shelf.entries()?;
    for entry in &entries {
        println!("{}", line(entry, link.points_to(&entry.path)));
    }
    if entries.is_empty() {
        let names: Vec<&str> = known_models().map(|(name, _)| name).collect();
        println!(
            "no models in {}; phi-edge pull NAME fetches one: {}",
            shelf.folder().display(),
            names.join(", ")
        );
    }
    Ok(())
}

fn line(entry: &StoredModel, in_use: bool) -> String {
    let manifest = &entry.manifest;
    let licence = manifest.licence.as_deref().unwrap_or("not stated");
    let mut line = format!(
        "{:24} {:>9}  licence {licence}",
        entry.name,
        Size(entry.bytes).to_string()
    );
    if let Some(origin) = &manifest.origin {
        let commit = origin.commit.get(..8).unwrap_or(&origin.commit);
        let _ = write!(line, "  {}@{commit} {}", origin.repository, origin.folder);
    }
    for (mark, applies) in [
        ("  (in use)", in_use),
        ("  (no hashes)", manifest.files.is_empty()),
        ("  (previous version kept)", entry.has_previous),
    ] {
        if applies {
            line.push_str(mark);
        }
    }
    line
}

fn verify(directory: &Path) -> Result<(), Fault> {
    let faults = ModelStore::verify(directory)?;
    for fault in &faults {
        println!("{fault}");
    }
    if faults.is_empty() {
        println!("{}: every file is as it came", directory.display());
        return Ok(());
    }
    let message = format!(
        "{}: {} files differ from the manifest; pull or import it again",
        directory.display(),
        faults.len()
    );
    Err(Fault::new(Exit::Config, message))
}
