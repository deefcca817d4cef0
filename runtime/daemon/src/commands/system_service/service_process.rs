//! The process of the service: the daemon under the control of the service manager.
//!
//! The service manager restarts a service whose process ends without a word, and leaves one alone that reports its end. So a
//! fault that a restart does not mend (wrong configuration, a session that another client has) is reported, and for all
//! other faults the process just ends.

use std::ffi::OsString;
use std::io::Write as _;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::mpsc;
use windows_service::define_windows_service;
use windows_service::service::{
    ServiceControl, ServiceControlAccept, ServiceExitCode, ServiceState, ServiceStatus, ServiceType,
};
use windows_service::service_control_handler::{self, ServiceControlHandlerResult, ServiceStatusHandle};
use windows_service::service_dispatcher;

use super::{LOG_PATH_KEY, SERVICE_NAME};
use crate::exit::{Exit, Fault, chain};
use crate::run;
use crate::run::signals::{ControlReceiver, ServiceControls};
use crate::setup::args::ConfigArgs;

/// The time that a stop may take before the service counts as hung: `limits.drain_grace` and the last replies.
const STOP_HINT: Duration = Duration::from_mins(1);
/// A second stop ends the daemon at once.
const STOP_CAPACITY: usize = 2;

/// The arguments of the process: the service manager calls the entry point without any context.
static ARGUMENTS: OnceLock<ConfigArgs> = OnceLock::new();

define_windows_service!(service_entry, service_main);

/// Runs until the service manager stops the service.
pub(super) fn run(args: &ConfigArgs) -> Result<(), Fault> {
    ARGUMENTS.get_or_init(|| args.clone());
    service_dispatcher::start(SERVICE_NAME, service_entry).map_err(|error| {
        let message = format!(
            "only the service manager can start this: {}; in a console use phi-edge run",
            chain(&error)
        );
        Fault::new(Exit::Usage, message)
    })
}

/// The service's thread. The arguments of a start by hand are not used.
fn service_main(_: Vec<OsString>) {
    let args = ARGUMENTS.get().cloned().unwrap_or_default();
    std::panic::set_hook(Box::new(|panic| {
        tracing::error!(%panic, "a thread has panicked");
    }));
    let outcome = match register() {
        Ok((status, controls)) => {
            report(status, ServiceState::Running, ServiceExitCode::NO_ERROR);
            run::run_controlled(&args, controls)
                .map_err(|fault| (fault, Some(status)))
                .map(|()| status)
        }
        Err(fault) => Err((fault, None)),
    };
    match outcome {
        Ok(status) => report(status, ServiceState::Stopped, ServiceExitCode::NO_ERROR),
        Err((fault, status)) => {
            note(&args, &fault);
            let code = fault.exit as u8;
            match status {
                Some(status) if matches!(fault.exit, Exit::Config | Exit::TakenOver) => {
                    let code = ServiceExitCode::ServiceSpecific(code.into());
                    report(status, ServiceState::Stopped, code);
                }
                _ => std::process::exit(code.into()),
            }
        }
    }
}

/// Takes the controls of the service manager.
fn register() -> Result<(ServiceStatusHandle, ServiceControls), Fault> {
    let (stops_tx, stops) = mpsc::channel(STOP_CAPACITY);
    let (reloads_tx, reloads) = mpsc::channel(1);
    let registered = Arc::new(OnceLock::new());
    let status = Arc::clone(&registered);
    let handler = move |control| match control {
        ServiceControl::Stop | ServiceControl::Preshutdown => {
            if let Some(status) = status.get() {
                report(*status, ServiceState::StopPending, ServiceExitCode::NO_ERROR);
            }
            // Full: two stops wait already.
            let _ = stops_tx.try_send(());
            ServiceControlHandlerResult::NoError
        }
        ServiceControl::ParamChange => {
            // Full: a reload waits already.
            let _ = reloads_tx.try_send(());
            ServiceControlHandlerResult::NoError
        }
        ServiceControl::Interrogate => ServiceControlHandlerResult::NoError,
        _ => ServiceControlHandlerResult::NotImplemented,
    };
    let handle = service_control_handler::register(SERVICE_NAME, handler)
        .map_err(|error| Fault::failed(format!("the service can't be controlled: {}", chain(&error))))?;
    registered.get_or_init(|| handle);
    let controls = ServiceControls {
        stops: ControlReceiver::new(stops),
        reloads: ControlReceiver::new(reloads),
    };
    Ok((handle, controls))
}

/// Tells the service manager the service's state; that it can't be told is no reason to end.
fn report(handle: ServiceStatusHandle, state: ServiceState, exit_code: ServiceExitCode) {
    let (accepted, wait_hint) = match state {
        ServiceState::Running => (
            ServiceControlAccept::STOP
                | ServiceControlAccept::PRESHUTDOWN
                | ServiceControlAccept::PARAM_CHANGE,
            Duration::ZERO,
        ),
        // A second stop ends it at once.
        ServiceState::StopPending => (ServiceControlAccept::STOP, STOP_HINT),
        _ => (ServiceControlAccept::empty(), Duration::ZERO),
    };
    let status = ServiceStatus {
        service_type: ServiceType::OWN_PROCESS,
        current_state: state,
        controls_accepted: accepted,
        exit_code,
        checkpoint: u32::from(state == ServiceState::StopPending),
        wait_hint,
        process_id: None,
    };
    if let Err(error) = handle.set_service_status(status) {
        tracing::warn!(
            error = chain(&error),
            "the service manager can't be told the service's state"
        );
    }
}

/// Writes the fault to the log; before there is one, to its file.
fn note(args: &ConfigArgs, fault: &Fault) {
    if tracing::dispatcher::has_been_set() {
        tracing::error!(exit = fault.exit as u8, error = fault.message, "the service ends");
        return;
    }
    let log = args.set.iter().rfind(|(key, _)| key == LOG_PATH_KEY);
    let file = log.and_then(|(_, path)| {
        let mut options = std::fs::OpenOptions::new();
        options.create(true).append(true).open(path).ok()
    });
    if let Some(mut file) = file {
        let time = jiff::Timestamp::now();
        let code = fault.exit as u8;
        // There is no other place to report to.
        let _ = writeln!(
            file,
            "{time} ERROR the service ends exit={code} error={:?}",
            fault.message
        );
    }
}
