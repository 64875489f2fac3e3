//! The devices of this host.

use crate::error::{Error, Result};
use crate::mlx;
use std::sync::OnceLock;

/// What a stream computes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Device {
    /// The processor.
    Cpu,
    /// Metal or CUDA.
    Gpu,
}

impl Device {
    /// The name in Elixir.
    pub fn name(self) -> &'static str {
        match self {
            Device::Cpu => "cpu",
            Device::Gpu => "gpu",
        }
    }

    /// Whether this host has such a device. A build for a GPU on a host without one has none: MLX's
    /// own `is_available` speaks of the build, its device count of the host.
    pub fn is_present(self) -> bool {
        static GPU: OnceLock<bool> = OnceLock::new();
        match self {
            Device::Cpu => true,
            Device::Gpu => *GPU.get_or_init(|| {
                mlx::install_error_handler();
                let mut count = 0;
                let gpu = mlx_sys::mlx_device_type__MLX_GPU;
                // SAFETY: writes an int; the error handler is ours.
                let status = unsafe { mlx_sys::mlx_device_count(&mut count, gpu) };
                mlx::check("Device", status).is_ok() && count > 0
            }),
        }
    }

    /// The device that work goes to when nobody says otherwise.
    pub fn preferred() -> Device {
        if Device::Gpu.is_present() {
            Device::Gpu
        } else {
            Device::Cpu
        }
    }

    /// An error where the host lacks the device.
    pub(crate) fn require(self) -> Result<()> {
        if self.is_present() {
            return Ok(());
        }
        Err(Error::NoDevice { device: self.name(), available: Device::Cpu.name().to_owned() })
    }

    /// A handle for mlx-c, alive for `f`.
    pub(crate) fn with_raw<T>(self, f: impl FnOnce(mlx_sys::mlx_device) -> T) -> T {
        let kind = match self {
            Device::Cpu => mlx_sys::mlx_device_type__MLX_CPU,
            Device::Gpu => mlx_sys::mlx_device_type__MLX_GPU,
        };
        // SAFETY: makes a plain value on the heap, freed below.
        let device = unsafe { mlx_sys::mlx_device_new_type(kind, 0) };
        let value = f(device);
        // SAFETY: made above and not kept by mlx-c, which copies devices.
        unsafe { mlx_sys::mlx_device_free(device) };
        value
    }
}
