//! The folder of the installed models, as commands find it.

use std::path::{Path, PathBuf};

use clap::Args;
use phi_edge_models::{ModelLink, ModelStore};

use crate::exit::Fault;
use crate::setup::args::ConfigArgs;
use crate::setup::settings;

#[derive(Args)]
pub(crate) struct ModelStoreArgs {
    /// The folder of the models [default: `models` beside model.path].
    #[arg(long, value_name = "DIR", global = true)]
    dir: Option<PathBuf>,
    #[command(flatten)]
    config: ConfigArgs,
}

impl ModelStoreArgs {
    /// Opens the folder of the models, and the link to the one in use.
    pub(crate) fn open(&self) -> Result<(ModelStore, ModelLink), Fault> {
        let loaded = settings::load(&self.config)?;
        let link = &loaded.config.model.path;
        let folder = self.dir.clone().unwrap_or_else(|| beside(link));
        Ok((ModelStore::new(folder), ModelLink::new(link)))
    }
}

/// The folder `models` beside the link; the link's own folder if it has that name.
fn beside(link: &Path) -> PathBuf {
    let parent = link.parent().unwrap_or(Path::new(""));
    if parent.file_name().is_some_and(|name| name == "models") {
        parent.to_path_buf()
    } else {
        parent.join("models")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_stand_beside_the_link() {
        let check = |link: &str, folder: &str| assert_eq!(beside(Path::new(link)), Path::new(folder));
        check("/var/lib/phi-edge/model", "/var/lib/phi-edge/models");
        check("/srv/models/phi-3.5-mini", "/srv/models");
        check("model", "models");
    }
}
