//! Operations of MLX that mlx-rs 0.33 does not expose with run-time ranges.
#![expect(unsafe_code, reason = "calls into mlx-c; each function states its contract")]

use mlx_rs::error::Exception;
use mlx_rs::{Array, Stream};

/// Runs an mlx-c operation that writes one array, and turns its status into a `Result`.
fn call(op: impl FnOnce(*mut mlx_sys::mlx_array, mlx_sys::mlx_stream) -> i32) -> Result<Array, Exception> {
    let stream = Stream::thread_local_or_default();
    // SAFETY: `mlx_array_new` makes an empty handle that the operation fills and `Array` owns.
    let mut result = unsafe { mlx_sys::mlx_array_new() };
    let status = op(&mut result, stream.as_ref().as_ptr());
    // SAFETY: the handle is live and owned by nobody else, also when the operation failed.
    let array = unsafe { Array::from_ptr(result) };
    if status == 0 {
        Ok(array)
    } else {
        // The message went to the error handler that mlx-rs installed on its first operation.
        Err(Exception::custom("MLX refused a slice operation"))
    }
}

/// `a[start..stop]` in every dimension, as a view.
pub(crate) fn slice(a: &Array, start: &[i32], stop: &[i32]) -> Result<Array, Exception> {
    assert_eq!(
        (start.len(), stop.len()),
        (a.ndim(), a.ndim()),
        "one range a dimension"
    );
    let strides = vec![1; start.len()];
    // SAFETY: the three arrays live until the call returns and have the lengths passed with
    // them; MLX copies them.
    call(|result, stream| unsafe {
        mlx_sys::mlx_slice(
            result,
            a.as_ptr(),
            start.as_ptr(),
            start.len(),
            stop.as_ptr(),
            stop.len(),
            strides.as_ptr(),
            strides.len(),
            stream,
        )
    })
}

/// `a` with `a[start..stop]` replaced by `update`; in place when nobody else holds `a`.
pub(crate) fn slice_update(
    a: &Array,
    update: &Array,
    start: &[i32],
    stop: &[i32],
) -> Result<Array, Exception> {
    assert_eq!(
        (start.len(), stop.len()),
        (a.ndim(), a.ndim()),
        "one range a dimension"
    );
    let strides = vec![1; start.len()];
    // SAFETY: as in `slice`.
    call(|result, stream| unsafe {
        mlx_sys::mlx_slice_update(
            result,
            a.as_ptr(),
            update.as_ptr(),
            start.as_ptr(),
            start.len(),
            stop.as_ptr(),
            stop.len(),
            strides.as_ptr(),
            strides.len(),
            stream,
        )
    })
}

/// `a` with `a[i0[n], :, i2[n], :] = updates[n, 0, :, 0, :]` for every `n`; in place when nobody
/// else holds `a`.
///
/// Shapes: `a` `[R, H, C, D]`, `i0` and `i2` `[N]`, `updates` `[N, 1, H, 1, D]`.
pub(crate) fn scatter_rows(a: &Array, i0: &Array, i2: &Array, updates: &Array) -> Result<Array, Exception> {
    let axes = [0, 2];
    let indices = [i0.as_ptr(), i2.as_ptr()];
    // SAFETY: the vector copies the two live handles and is freed after the call; `axes` lives
    // until the call returns.
    call(|result, stream| unsafe {
        let vector = mlx_sys::mlx_vector_array_new_data(indices.as_ptr(), indices.len());
        let status = mlx_sys::mlx_scatter(
            result,
            a.as_ptr(),
            vector,
            updates.as_ptr(),
            axes.as_ptr(),
            axes.len(),
            stream,
        );
        mlx_sys::mlx_vector_array_free(vector);
        status
    })
}
