//! Views of matrices in f32 buffers, and their product through the crate `gemm`.

use std::marker::PhantomData;
use std::ops::Range;

use gemm::Parallelism;

/// A read-only matrix: element (i, j) at `i · row_stride + j · column_stride`.
#[derive(Clone, Copy)]
pub(super) struct Mat<'a> {
    data: *const f32,
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
    lifetime: PhantomData<&'a [f32]>,
}

// SAFETY: elements are only read through a `Mat`, as through a `&[f32]`.
unsafe impl Send for Mat<'_> {}
// SAFETY: as above.
unsafe impl Sync for Mat<'_> {}

impl<'a> Mat<'a> {
    /// `[rows, columns]`, row after row.
    pub(super) fn new(data: &'a [f32], rows: usize, columns: usize) -> Self {
        Self::part(data, rows, columns, 0..columns)
    }

    /// Some columns of a `[rows, width]` matrix.
    pub(super) fn part(data: &'a [f32], rows: usize, width: usize, columns: Range<usize>) -> Self {
        assert!(data.len() >= rows * width, "{} values are no {rows} × {width} matrix", data.len());
        assert!(columns.end <= width, "columns {columns:?} of {width}");
        Self {
            data: data[columns.start..].as_ptr(),
            rows,
            columns: columns.len(),
            row_stride: width,
            column_stride: 1,
            lifetime: PhantomData,
        }
    }

    /// The transpose, without moving anything.
    pub(super) fn t(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }
}

/// A matrix to write to, with rows that lie closely; its columns may be a part of a wider matrix.
pub(super) struct MatMut<'a> {
    data: *mut f32,
    rows: usize,
    columns: usize,
    row_stride: usize,
    lifetime: PhantomData<&'a mut [f32]>,
}

// SAFETY: a `MatMut` is the only way to its elements while it lives, as a `&mut [f32]` is.
unsafe impl Send for MatMut<'_> {}
// SAFETY: through `&MatMut` elements are only read.
unsafe impl Sync for MatMut<'_> {}

impl<'a> MatMut<'a> {
    /// `[rows, columns]`, row after row.
    pub(super) fn new(data: &'a mut [f32], rows: usize, columns: usize) -> Self {
        assert!(data.len() >= rows * columns, "{} values are no {rows} × {columns} matrix", data.len());
        Self { data: data.as_mut_ptr(), rows, columns, row_stride: columns, lifetime: PhantomData }
    }

    /// Splits into blocks of `rows` × `width` each, row range after row range, within them left to right.
    pub(super) fn split(self, row_ranges: &[Range<usize>], width: usize) -> Vec<MatMut<'a>> {
        assert!(self.columns.is_multiple_of(width), "{} columns in parts of {width}", self.columns);
        let mut end = 0;
        let mut out = Vec::with_capacity(row_ranges.len() * self.columns / width);
        for range in row_ranges {
            assert!(range.start >= end && range.end <= self.rows, "row ranges are ascending and disjoint");
            end = range.end;
            for part in 0..self.columns / width {
                out.push(MatMut {
                    // SAFETY: the range lies in the matrix, and no two blocks share an element.
                    data: unsafe { self.data.add(range.start * self.row_stride + part * width) },
                    rows: range.len(),
                    columns: width,
                    row_stride: self.row_stride,
                    lifetime: PhantomData,
                });
            }
        }
        out
    }

    /// One row.
    #[inline(always)]
    pub(super) fn row(&self, i: usize) -> &[f32] {
        assert!(i < self.rows);
        // SAFETY: the row lies in the matrix, and `self` is borrowed.
        unsafe { std::slice::from_raw_parts(self.data.add(i * self.row_stride), self.columns) }
    }

    /// One row, to be written.
    #[inline(always)]
    pub(super) fn row_mut(&mut self, i: usize) -> &mut [f32] {
        assert!(i < self.rows);
        // SAFETY: the row lies in the matrix, and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(i * self.row_stride), self.columns) }
    }

    /// A view for reading.
    pub(super) fn view(&self) -> Mat<'_> {
        Mat {
            data: self.data,
            rows: self.rows,
            columns: self.columns,
            row_stride: self.row_stride,
            column_stride: 1,
            lifetime: PhantomData,
        }
    }
}

/// What happens to the destination's old values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Store {
    /// They are overwritten.
    Fresh,
    /// The product is added to them.
    Sum,
}

/// Whether a product may use all threads or runs inside a parallel loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Threads {
    /// All threads of the pool.
    All,
    /// The calling thread only.
    One,
}

/// dst = (dst +) scale · A B.
pub(super) fn product(dst: &mut MatMut, store: Store, a: Mat, b: Mat, scale: f32, threads: Threads) {
    assert!(
        a.columns == b.rows && dst.rows == a.rows && dst.columns == b.columns,
        "{}×{} times {}×{} into {}×{}",
        a.rows,
        a.columns,
        b.rows,
        b.columns,
        dst.rows,
        dst.columns
    );
    let parallelism = match threads {
        Threads::All => Parallelism::Rayon(0),
        Threads::One => Parallelism::None,
    };
    // SAFETY: each view's constructor checked that its elements lie in its buffer, the shapes fit each other,
    // and `dst` is borrowed exclusively, so that it overlaps neither operand.
    unsafe {
        gemm::gemm(
            dst.rows,
            dst.columns,
            a.columns,
            dst.data,
            1,
            dst.row_stride as isize,
            store == Store::Sum,
            a.data,
            a.column_stride as isize,
            a.row_stride as isize,
            b.data,
            b.column_stride as isize,
            b.row_stride as isize,
            1.0f32,
            scale,
            false,
            false,
            false,
            parallelism,
        );
    }
}
