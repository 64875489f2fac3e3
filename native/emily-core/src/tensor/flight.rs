//! What dropping an array's handle frees, and whether a stream may still write to it. Only a device whose
//! streams compute while others allocate has such.

use mlx_rs::Array;

/// Whether something else holds the array: another handle, a graph, an evaluation.
pub(super) fn is_shared(array: &Array) -> bool {
    // SAFETY: the handle holds an array.
    unsafe { mlx_sys::emily_array_is_shared(array.as_ptr()) }
}

/// Whether dropping the handle would free what is still computed: the array, or one that its graph alone holds.
pub(super) fn is_in_flight(array: &Array) -> bool {
    // SAFETY: the handle holds an array that no evaluation is in the middle of: it would hold it too.
    unsafe { mlx_sys::emily_array_is_in_flight(array.as_ptr()) }
}

/// Waits for what [`is_in_flight`] speaks of. Its failure has nobody to be told.
pub(crate) fn wait_for(array: &Array) {
    // SAFETY: as above.
    unsafe { mlx_sys::emily_array_wait_in_flight(array.as_ptr()) }
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
        wait_for(&twice);
        assert!(!is_in_flight(&twice));
    }
}
