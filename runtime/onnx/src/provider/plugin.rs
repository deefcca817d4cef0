//! Plugins: libraries with an execution provider, registered with ONNX Runtime's environment, and the devices they offer.

use std::path::{Path, PathBuf};

use ort::AsPointer;
use ort::device::Device;
use ort::memory::DeviceType;
use ort::session::builder::SessionBuilder;
use parking_lot::Mutex;

use super::CPU_PROVIDER;
use super::library_file::{LibraryFault, checked};
use super::settings::PluginSettings;
use crate::elf_size::cut_short;
use crate::error::{OnnxError, one_line};
use crate::library::Library;

/// Why a plugin's device can't be had.
pub(super) enum PluginError {
    /// The library may not be loaded.
    Refused(OnnxError),
    /// What is missing.
    Unavailable(String),
}

/// The device of a plugin's provider that is in use.
pub(super) struct PluginDevice<'a> {
    device: Device<'a>,
    settings: &'a PluginSettings,
    name: String,
}

/// A registered library, and the addresses of the devices that came with it.
struct Registered {
    file: PathBuf,
    devices: Vec<usize>,
}

/// The libraries that this process has registered; they stay until it ends.
static REGISTERED: Mutex<Vec<Registered>> = Mutex::new(Vec::new());

/// The device of the plugin: the one of this number, else its first GPU, NPU or other device, in this order.
pub(super) fn device<'a>(
    library: &'a Library,
    settings: &'a PluginSettings,
    number: Option<u32>,
) -> Result<PluginDevice<'a>, PluginError> {
    let path = settings.library.as_path();
    let file = checked(path).map_err(|fault| match fault {
        LibraryFault::Missing(fault) => PluginError::Unavailable(format!("{} {fault}", path.display())),
        LibraryFault::Refused(fault) => PluginError::Refused(OnnxError::PluginRefused {
            path: path.to_path_buf(),
            fault,
        }),
    })?;
    let addresses = register(library, &file).map_err(PluginError::Unavailable)?;
    let mut devices: Vec<Device<'a>> = library
        .environment()
        .devices()
        .filter(|device| addresses.contains(&address(device)))
        .collect();
    let found = devices.len();
    // Stable: among equals the plugin's own order counts.
    let place = match number {
        Some(number) => usize::try_from(number).ok().filter(|number| *number < found),
        None => (0..found).min_by_key(|index| devices.get(*index).map(rank)),
    };
    match place {
        Some(place) => {
            let device = devices.swap_remove(place);
            let name = device
                .ep()
                .map_err(|error| PluginError::Unavailable(one_line(error)))?
                .to_owned();
            Ok(PluginDevice {
                device,
                settings,
                name,
            })
        }
        None if found == 0 => Err(PluginError::Unavailable(format!(
            "{} is loaded and finds no device on this machine that it can run on (what it says itself is on standard error)",
            path.display()
        ))),
        None => Err(PluginError::Unavailable(format!(
            "{} has no device of the number {} (runtime.device_id), but {found} from 0 on",
            path.display(),
            number.unwrap_or_default()
        ))),
    }
}

/// Keeps a session on the processor where plugins are registered: without a device of its own, a session of these bindings gets
/// whichever of all registered devices ONNX Runtime prefers.
pub(super) fn keep_on_processor(
    library: &Library,
    builder: SessionBuilder,
) -> Result<SessionBuilder, OnnxError> {
    if REGISTERED.lock().is_empty() {
        return Ok(builder);
    }
    let devices = library.environment().devices();
    let mut processors = devices.filter(|device| device.ep().is_ok_and(|name| name == CPU_PROVIDER));
    Ok(builder.with_devices(processors.next(), None)?)
}

impl PluginDevice<'_> {
    /// Registers the device with a session builder; the error is ONNX Runtime's.
    pub(super) fn append_to(self, builder: SessionBuilder) -> Result<SessionBuilder, String> {
        // The bindings take options of several providers at once, told apart by a prefix.
        let options: Vec<(String, String)> = self
            .settings
            .options
            .iter()
            .map(|(name, value)| (format!("{}.{name}", self.name), value.clone()))
            .collect();
        builder
            .with_devices([self.device], Some(&options))
            .map_err(one_line)
    }
}

impl std::fmt::Display for PluginDevice<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let hardware = self.device.hardware_device();
        let kind = match hardware.ty() {
            DeviceType::CPU => "processor",
            DeviceType::GPU => "GPU",
            DeviceType::NPU => "NPU",
            DeviceType::FPGA => "FPGA",
        };
        write!(
            f,
            "{} on {kind} {} of {}",
            self.name,
            hardware.id(),
            hardware.vendor().unwrap_or("an unknown vendor")
        )
    }
}

/// Registers the library unless it is; the addresses of its devices.
fn register(library: &Library, file: &Path) -> Result<Vec<usize>, String> {
    let mut registered = REGISTERED.lock();
    if let Some(known) = registered.iter().find(|known| known.file == file) {
        return Ok(known.devices.clone());
    }
    if let Some(fault) = cut_short(file) {
        return Err(format!("{} can't be loaded: {fault}", file.display()));
    }
    let environment = library.environment();
    let before: Vec<usize> = environment.devices().map(|device| address(&device)).collect();
    // Some plugins take this as the name of their provider.
    let name = match registered.len() {
        0 => "plugin".to_owned(),
        others => format!("plugin{}", others + 1),
    };
    environment
        .register_ep_library(name, file)
        .map_err(|error| format!("{} can't be loaded: {}", file.display(), one_line(error)))?;
    let devices: Vec<usize> = environment
        .devices()
        .map(|device| address(&device))
        .filter(|device| !before.contains(device))
        .collect();
    registered.push(Registered {
        file: file.to_path_buf(),
        devices: devices.clone(),
    });
    Ok(devices)
}

/// A device's address, which is the same for as long as its library is registered.
fn address(device: &Device<'_>) -> usize {
    device.ptr().addr()
}

fn rank(device: &Device<'_>) -> u8 {
    match device.hardware_device().ty() {
        DeviceType::GPU => 0,
        DeviceType::NPU => 1,
        _ => 2,
    }
}
