//! The registration of the service with the service manager.

use std::ffi::OsString;
use std::path::Path;
use std::time::{Duration, Instant};

use windows_service::service::{
    Service, ServiceAccess, ServiceAction, ServiceActionType, ServiceErrorControl, ServiceFailureActions,
    ServiceFailureResetPeriod, ServiceInfo, ServiceStartType, ServiceState, ServiceType,
};
use windows_service::service_manager::{ServiceManager, ServiceManagerAccess};

use super::{LOG_PATH_KEY, SERVICE_NAME};
use crate::exit::{Exit, Fault, chain};
use crate::machine::folders;
use crate::setup::args::ConfigArgs;

const DISPLAY_NAME: &str = "phi-edge";
const DESCRIPTION: &str = "Answers prompts over MQTT with a language model on this machine.";
/// The service's own account, which needs no password and has no rights but those that it is given.
const ACCOUNT: &str = r"NT SERVICE\phi-edge";

/// The pauses before the restarts after the first, the second and every further failure.
const RESTART_DELAYS: [Duration; 3] = [
    Duration::from_secs(5),
    Duration::from_secs(30),
    Duration::from_mins(5),
];
/// The time without a failure after which the next one counts as the first.
const FAILURE_RESET_PERIOD: Duration = Duration::from_hours(24);
/// The time that the system's shutdown waits for the service.
const PRESHUTDOWN_TIMEOUT: Duration = Duration::from_mins(1);
/// The time in which a service must have stopped before it is removed; running answers are finished meanwhile.
const STOP_TIMEOUT: Duration = Duration::from_mins(2);
const STATE_POLL_INTERVAL: Duration = Duration::from_millis(200);

/// Registers this program as the service, or changes what is registered.
pub(super) fn install(args: &ConfigArgs) -> Result<(), Fault> {
    let manager = manager(ServiceManagerAccess::CONNECT | ServiceManagerAccess::CREATE_SERVICE)?;
    let info = description(args)?;
    let access = ServiceAccess::CHANGE_CONFIG | ServiceAccess::START | ServiceAccess::QUERY_STATUS;
    let service = match manager.open_service(SERVICE_NAME, access) {
        Ok(service) => service
            .change_config(&info)
            .map(|()| service)
            .map_err(|error| refused("changed", &error))?,
        Err(_) => manager
            .create_service(&info, access)
            .map_err(|error| refused("registered", &error))?,
    };
    configure(&service);
    println!(
        "The service {SERVICE_NAME} is registered; it starts with the system, or by: sc start {SERVICE_NAME}"
    );
    Ok(())
}

/// Stops the service and removes its registration.
pub(super) fn uninstall() -> Result<(), Fault> {
    let manager = manager(ServiceManagerAccess::CONNECT)?;
    let access = ServiceAccess::STOP | ServiceAccess::DELETE | ServiceAccess::QUERY_STATUS;
    let service = manager
        .open_service(SERVICE_NAME, access)
        .map_err(|error| refused("found", &error))?;
    let state = || {
        let status = service
            .query_status()
            .map_err(|error| refused("queried", &error))?;
        Ok::<_, Fault>(status.current_state)
    };
    if state()? != ServiceState::Stopped {
        service.stop().map_err(|error| refused("stopped", &error))?;
        let deadline = Instant::now() + STOP_TIMEOUT;
        while state()? != ServiceState::Stopped {
            if Instant::now() >= deadline {
                return Err(Fault::failed(format!(
                    "the service {SERVICE_NAME} has not stopped in {} seconds; try again, or end its process",
                    STOP_TIMEOUT.as_secs()
                )));
            }
            std::thread::sleep(STATE_POLL_INTERVAL);
        }
    }
    service.delete().map_err(|error| refused("removed", &error))?;
    println!("The service {SERVICE_NAME} is removed; configuration, state and log stay");
    Ok(())
}

fn manager(access: ServiceManagerAccess) -> Result<ServiceManager, Fault> {
    ServiceManager::local_computer(None::<&str>, access).map_err(|error| {
        Fault::failed(format!(
            "the service manager can't be reached: {}; run this as administrator",
            chain(&error)
        ))
    })
}

fn description(args: &ConfigArgs) -> Result<ServiceInfo, Fault> {
    let program = std::env::current_exe()
        .map_err(|error| Fault::failed(format!("the program's own path is not known: {error}")))?;
    Ok(ServiceInfo {
        name: SERVICE_NAME.into(),
        display_name: DISPLAY_NAME.into(),
        service_type: ServiceType::OWN_PROCESS,
        start_type: ServiceStartType::AutoStart,
        error_control: ServiceErrorControl::Normal,
        executable_path: program,
        launch_arguments: launch_arguments(args, &folders::configuration()),
        dependencies: Vec::new(),
        account_name: Some(ACCOUNT.into()),
        account_password: None,
    })
}

/// The command line of the service: what `install` was given, and a file for the log.
fn launch_arguments(args: &ConfigArgs, folder: &Path) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = vec!["service".into(), "run".into()];
    if let Some(file) = &args.config {
        // A service starts in a folder of the system.
        let file = std::path::absolute(file).unwrap_or_else(|_| file.clone());
        arguments.extend(["--config".into(), file.into_os_string()]);
    }
    let log = folder.join("log").join("phi-edge.log");
    let default_log = (LOG_PATH_KEY.to_owned(), log.display().to_string());
    let has_log = args.set.iter().any(|(key, _)| key == LOG_PATH_KEY);
    let default_log = (!has_log).then_some(&default_log);
    for (key, value) in default_log.into_iter().chain(&args.set) {
        arguments.extend(["--set".into(), format!("{key}={value}").into()]);
    }
    arguments
}

/// Sets what the registration itself does not: the service works without, so a refusal is only reported.
fn configure(service: &Service) {
    let restart = |delay| ServiceAction {
        action_type: ServiceActionType::Restart,
        delay,
    };
    let recovery = ServiceFailureActions {
        reset_period: ServiceFailureResetPeriod::After(FAILURE_RESET_PERIOD),
        reboot_msg: None,
        command: None,
        actions: Some(RESTART_DELAYS.map(restart).into()),
    };
    for (what, done) in [
        ("description", service.set_description(DESCRIPTION)),
        (
            "restarts after failures",
            service.update_failure_actions(recovery),
        ),
        (
            "start after the system's own services",
            service.set_delayed_auto_start(true),
        ),
        (
            "time for a shutdown",
            service.set_preshutdown_timeout(PRESHUTDOWN_TIMEOUT),
        ),
    ] {
        if let Err(error) = done {
            eprintln!("phi-edge: the service's {what} can't be set: {}", chain(&error));
        }
    }
}

fn refused(what: &str, error: &windows_service::Error) -> Fault {
    let message = format!(
        "the service {SERVICE_NAME} can't be {what}: {}; run this as administrator",
        chain(error)
    );
    Fault::new(Exit::Failed, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_service_logs_to_a_file_and_keeps_its_settings() {
        let folder = Path::new(r"C:\ProgramData\phi-edge");
        let line = |args: &ConfigArgs| {
            let arguments = launch_arguments(args, folder).into_iter();
            let words: Vec<String> = arguments.map(|word| word.display().to_string()).collect();
            words.join(" ")
        };
        assert_eq!(
            line(&ConfigArgs::default()),
            r"service run --set log.path=C:\ProgramData\phi-edge\log\phi-edge.log"
        );
        let set = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let args = ConfigArgs {
            config: Some(r"C:\phi\my.toml".into()),
            set: vec![set("log.path", r"D:\log"), set("mqtt.host", "broker")],
        };
        assert_eq!(
            line(&args),
            r"service run --config C:\phi\my.toml --set log.path=D:\log --set mqtt.host=broker"
        );
    }
}
