//! What must be known before MLX's CUDA build is loaded: that needs NVIDIA's driver and libraries, and
//! does not load without them. This library needs nothing.

use libloading::Library;
use std::ffi::{c_char, c_int, CStr};

/// A device's name and its bytes of memory.
type Card = (String, u64);

/// Loads a library, by path or by the name that the system's loader looks for, and keeps it.
#[rustler::nif(schedule = "DirtyIo")]
fn open(library: String) -> Result<bool, String> {
    load(&library).map(|library| {
        // What it is needed for comes later, and is to find it loaded.
        std::mem::forget(library);
        true
    })
}

/// The newest CUDA version that the driver serves, as 1000 major + 10 minor, and the devices.
#[rustler::nif(schedule = "DirtyIo")]
fn driver() -> Result<(i32, Vec<Card>), String> {
    let driver = Driver(load("libcuda.so.1")?);
    driver.start()?;
    let version = driver.number("cuDriverGetVersion")?;
    let count = driver.number("cuDeviceGetCount")?;
    let cards = (0..count).map(|index| driver.card(index)).collect::<Result<_, _>>()?;
    std::mem::forget(driver);
    Ok((version, cards))
}

fn load(library: &str) -> Result<Library, String> {
    // SAFETY: NVIDIA's libraries may be loaded at any time and by any thread.
    unsafe { Library::new(library) }.map_err(|error| reason(&error))
}

/// What the loader says, which the crate's own error only refers to.
fn reason(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), reason)
}

struct Driver(Library);

impl Driver {
    fn start(&self) -> Result<(), String> {
        let function = self.function::<unsafe extern "C" fn(u32) -> c_int>("cuInit")?;
        // SAFETY: the flags must be 0; any thread may call it, any number of times.
        self.check("cuInit", unsafe { function(0) })
    }

    fn number(&self, name: &str) -> Result<c_int, String> {
        let function = self.function::<unsafe extern "C" fn(*mut c_int) -> c_int>(name)?;
        let mut number = 0;
        // SAFETY: both functions that are asked for write one int.
        let status = unsafe { function(&mut number) };
        self.check(name, status).map(|()| number)
    }

    fn card(&self, index: c_int) -> Result<Card, String> {
        type Get = unsafe extern "C" fn(*mut c_int, c_int) -> c_int;
        type GetName = unsafe extern "C" fn(*mut c_char, c_int, c_int) -> c_int;
        type GetMemory = unsafe extern "C" fn(*mut usize, c_int) -> c_int;
        let (get, get_name, get_memory) = (
            self.function::<Get>("cuDeviceGet")?,
            self.function::<GetName>("cuDeviceGetName")?,
            self.function::<GetMemory>("cuDeviceTotalMem_v2")?,
        );
        let (mut device, mut name, mut memory) = (0, [0; 256], 0);
        // SAFETY: writes an int, for an index below the count.
        self.check("cuDeviceGet", unsafe { get(&mut device, index) })?;
        // SAFETY: writes at most so many bytes, the last of them NUL.
        let status = unsafe { get_name(name.as_mut_ptr(), name.len() as c_int, device) };
        self.check("cuDeviceGetName", status)?;
        // SAFETY: writes a size.
        self.check("cuDeviceTotalMem", unsafe { get_memory(&mut memory, device) })?;
        // SAFETY: the driver has put a NUL behind the name, or the zeros that were there did.
        let name = unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned();
        Ok((name, memory as u64))
    }

    fn function<F>(&self, name: &str) -> Result<libloading::Symbol<'_, F>, String> {
        // SAFETY: callers give the function's type as CUDA's cuda.h declares it.
        unsafe { self.0.get(name.as_bytes()) }.map_err(|error| reason(&error))
    }

    fn check(&self, name: &str, status: c_int) -> Result<(), String> {
        if status == 0 {
            return Ok(());
        }
        type Describe = unsafe extern "C" fn(c_int, *mut *const c_char) -> c_int;
        let mut text: *const c_char = std::ptr::null();
        if let Ok(describe) = self.function::<Describe>("cuGetErrorString") {
            // SAFETY: writes a pointer to a static text, or null.
            unsafe { describe(status, &mut text) };
        }
        let reason = if text.is_null() {
            format!("error {status}")
        } else {
            // SAFETY: a NUL-terminated text of the driver.
            unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
        };
        Err(format!("{name}: {reason}"))
    }
}

rustler::init!("Elixir.Emily.Preflight.Nif");
