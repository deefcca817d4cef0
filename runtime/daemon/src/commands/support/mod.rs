//! `phi-edge support`: the bundle for a fault report, without secrets, prompts and answers.

mod gather;
mod redact;

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use clap::Args;
use flate2::Compression;
use flate2::write::GzEncoder;
use phi_edge_config::Loaded;

use crate::exit::Fault;
use crate::setup::args::ConfigArgs;
use crate::setup::settings;
use redact::Redactor;

#[derive(Args)]
pub(crate) struct SupportArgs {
    /// The file; it must not exist yet [default: phi-edge-support-NODE-TIME.tar.gz].
    #[arg(long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) config: ConfigArgs,
}

/// A file of the bundle.
struct BundleFile {
    name: &'static str,
    text: String,
}

/// Writes the bundle and says where it is.
pub(crate) fn support(args: &SupportArgs) -> Result<(), Fault> {
    // A wrong configuration is what a report is most often about: the bundle is made without it.
    let loaded = settings::load(&args.config);
    let redactor = Redactor::new(
        loaded.as_ref().ok().map(|loaded| &loaded.config),
        &args.config.set,
    );
    let files = files(args, loaded.as_ref());
    let output = match &args.output {
        Some(file) => file.clone(),
        None => default_name(loaded.as_ref().ok()),
    };
    write(&output, &files, &redactor)
        .map_err(|error| Fault::failed(format!("{}: can't be written: {error}", output.display())))?;
    println!("{} holds:", output.display());
    for file in &files {
        println!("  {}", file.name);
    }
    println!("Passwords, prompts and answers are left out. Look through it before you pass it on.");
    Ok(())
}

fn files(args: &SupportArgs, loaded: Result<&Loaded, &Fault>) -> Vec<BundleFile> {
    let mut files = Vec::new();
    let mut add = |name, text| files.push(BundleFile { name, text });
    add(
        "versions.txt",
        gather::versions(loaded.ok().map(|loaded| &loaded.config)),
    );
    add("check.txt", gather::check(&args.config));
    add("log.txt", gather::log());
    match loaded {
        Err(fault) => add("config.txt", format!("{fault}\n")),
        Ok(loaded) => {
            let config = &loaded.config;
            add("config.txt", phi_edge_config::render(loaded));
            add("model.txt", gather::model(&config.model.path));
            add("store.txt", gather::store(&config.store.path));
            add("status.json", gather::status(config));
            if let Some(address) = config.metrics.listen {
                add("metrics.txt", gather::http(address, "/metrics"));
                add("ready.txt", gather::http(address, "/readyz"));
            }
        }
    }
    files
}

fn default_name(loaded: Option<&Loaded>) -> PathBuf {
    let node = loaded.map_or("node", |loaded| loaded.config.node.name.as_str());
    let time = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ");
    PathBuf::from(format!("phi-edge-support-{node}-{time}.tar.gz"))
}

/// A gzipped tar, for its owner alone; a file that is there already is not overwritten.
fn write(output: &Path, files: &[BundleFile], redactor: &Redactor) -> io::Result<()> {
    let mut archive = tar::Builder::new(GzEncoder::new(create(output)?, Compression::default()));
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    for file in files {
        let text = redactor.redact(&file.text);
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(now);
        header.set_cksum();
        let name = Path::new("phi-edge-support").join(file.name);
        archive.append_data(&mut header, name, text.as_bytes())?;
    }
    archive.into_inner()?.finish()?.sync_all()
}

fn create(output: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt as _;
        options.mode(0o600);
    }
    options.open(output)
}
