//! What dropping an array's handle frees, and whether a stream may still write to it. Only a device whose
//! streams compute while others allocate has such.

use crate::build::Arrays;
use mlx_rs::Array;

/// Whether something else holds the array: another handle, a graph, an evaluation.
pub(super) fn is_shared(array: &Array) -> bool {
    // SAFETY: the handle holds an array.
    unsafe { mlx_sys::emily_array_is_shared(array.as_ptr()) }
}

/// Whether dropping the handle would free what is still computed: the array, or one that its graph alone holds.
/// Nodes of its slot must not be scheduled meanwhile.
pub(super) fn is_in_flight(array: &Array) -> bool {
    // SAFETY: the handle holds an array, and the caller keeps others from scheduling its nodes.
    unsafe { mlx_sys::emily_array_is_in_flight(array.as_ptr()) }
}

/// What [`is_in_flight`] speaks of, of arrays that are dropped together, and maybe what is there already.
pub(crate) struct InFlight(Arrays);

impl InFlight {
    /// Nodes of their slot must not be scheduled meanwhile.
    pub(crate) fn of(dropped: &[Array]) -> Self {
        let handles: Vec<_> = dropped.iter().map(Array::as_ptr).collect();
        let found = Arrays::new();
        // SAFETY: live handles of arrays and a live vector; the rest as above.
        unsafe {
            mlx_sys::emily_arrays_find_in_flight(handles.as_ptr(), handles.len(), found.as_raw());
        }
        InFlight(found)
    }

    /// Waits for it. Its failure has nobody to be told.
    pub(crate) fn wait(self) {
        // SAFETY: a live vector of arrays that have been scheduled, which have their events by now.
        unsafe { mlx_sys::emily_arrays_wait(self.0.as_raw()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::Build;
    use crate::device::Device;
    use crate::dtype::Dtype;
    use crate::op::Op;
    use crate::tensor::{schedule, Tensor};

    #[test]
    fn a_graph_that_alone_holds_what_is_computed_is_in_flight() {
        const SIZE: usize = 1024;
        let build = Build::for_this_thread();
        let shape = [SIZE as i64; 2];
        let x = Tensor::from_bytes(&[0; SIZE * SIZE * 4], &shape, Dtype::Float32, Device::Cpu);
        let x = x.unwrap().handle("Matmul").unwrap();
        let product = |y: Array, _| Op::Matmul.build(&build, &[Some(&y), Some(&x)]).unwrap();
        // Computed long after it is scheduled.
        let y = (0..32).fold(x.clone(), product);
        assert!(!is_in_flight(&y), "nobody has scheduled it");
        schedule("Matmul", [&y]).unwrap();
        let twice = Op::Add.build(&build, &[Some(&y), Some(&y)]).unwrap();
        assert!(is_shared(&y) && !is_shared(&twice));
        assert!(!is_in_flight(&twice), "another handle keeps what it holds");
        drop(y);
        assert!(is_in_flight(&twice));
        let other = twice.clone();
        assert!(!is_in_flight(&twice) && !is_in_flight(&other), "each has the other");
        let both = [twice, other];
        InFlight::of(&both).wait();
        let [twice, _] = both;
        assert!(!is_in_flight(&twice));
    }
}
