//! `phi-edge store`: shows and purges the store of a stopped daemon.

use clap::{Args, Subcommand};
use phi_edge_service::{Purge, ToolError, inspect, purge};

use crate::exit::{Exit, Fault};
use crate::setup::args::ConfigArgs;
use crate::setup::settings;

#[derive(Args)]
pub(crate) struct StoreArgs {
    #[command(subcommand)]
    pub(crate) action: StoreAction,
    #[command(flatten)]
    pub(crate) config: ConfigArgs,
}

#[derive(Subcommand)]
pub(crate) enum StoreAction {
    /// Say what it holds.
    Show,
    /// Forget the outcomes that are kept for clients that ask again.
    PurgeOutcomes,
    /// Remove damaged files that were set aside.
    PurgeAside,
    /// Forget everything, also requests that are not answered yet.
    PurgeAll,
}

pub(crate) fn store(args: &StoreArgs) -> Result<(), Fault> {
    let loaded = settings::load(&args.config)?;
    let folder = &loaded.config.store.path;
    let purge = |what| purge(folder, what).map_err(|error| fault(&error));
    match args.action {
        StoreAction::Show => {
            let held = inspect(folder).map_err(|error| fault(&error))?;
            println!("requests to be answered: {}", held.open);
            println!("outcomes that are kept:  {}", held.outcomes);
            println!("undelivered messages:    {}", held.undelivered);
            println!(
                "images of requests:      {}, {} bytes",
                held.images, held.image_bytes
            );
            println!(
                "pictures of windows:     {}, {} bytes",
                held.rule_pictures, held.rule_picture_bytes
            );
            println!("messages of windows:     {}", held.rule_messages);
            println!("events without words:    {}", held.rule_events);
            println!("bytes:                   {}", held.bytes);
            for file in held.aside {
                println!("set aside:               {}", file.display());
            }
        }
        StoreAction::PurgeOutcomes => println!("{} outcomes are forgotten", purge(Purge::Outcomes)?),
        StoreAction::PurgeAside => println!("{} damaged files are removed", purge(Purge::Aside)?),
        StoreAction::PurgeAll => println!("{} rows are forgotten", purge(Purge::All)?),
    }
    Ok(())
}

fn fault(error: &ToolError) -> Fault {
    let exit = match error {
        ToolError::Missing(_) => Exit::Config,
        ToolError::Sqlite { .. } | ToolError::Io { .. } => Exit::Failed,
    };
    Fault::new(exit, error.to_string())
}
