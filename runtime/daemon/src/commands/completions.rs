//! `phi-edge completions`: the completion script of a shell.

use clap::Args;

#[derive(Args)]
pub(crate) struct CompletionsArgs {
    /// The shell.
    shell: clap_complete::Shell,
}

/// Prints the script that the shell loads.
pub(crate) fn completions(args: &CompletionsArgs, program: &mut clap::Command) {
    clap_complete::generate(args.shell, program, "phi-edge", &mut std::io::stdout());
}
