//! Wipes what computations leave on the stack and in wide registers. Types wipe the values that they own, but not the
//! copies that the compiler makes of them.

use std::arch::asm;

/// Deeper than any computation of this crate but those of [`DEEP`]: a test measures it.
pub(crate) const DEPTH: usize = 16 << 10;
/// Deeper than any computation of this crate, ML-KEM included, and than sealing or opening a batch.
pub(crate) const DEEP: usize = 96 << 10;
/// The frame of a computation begins at least this far below the frame that wipes it.
const GAP: usize = 256;

/// Computes something, and wipes the stack that this took. The result should only refer to secrets: it is returned as it is.
pub fn wiped<T>(compute: impl FnOnce() -> T) -> T {
    let result = lower(compute);
    wipe_below::<DEPTH>();
    result
}

/// Like [`wiped`], for computations that take much stack.
pub(crate) fn wiped_deep<T>(compute: impl FnOnce() -> T) -> T {
    let result = lower(compute);
    wipe_below::<DEEP>();
    result
}

/// Wipes the stack below the caller, and the wide registers. A thread calls this when keys that it has used are no longer
/// in use.
#[inline(never)]
pub fn wipe() {
    wipe_below::<DEEP>();
}

#[inline(never)]
fn lower<T>(compute: impl FnOnce() -> T) -> T {
    let mut gap = [0_u8; GAP];
    keep(&mut gap);
    let result = call(compute);
    keep(&mut gap);
    result
}

#[inline(never)]
fn call<T>(compute: impl FnOnce() -> T) -> T {
    compute()
}

#[inline(never)]
fn wipe_below<const N: usize>() {
    #[cfg(test)]
    if tests::LEAVES_ALL.get() {
        return;
    }
    let mut area = [0_u8; N];
    keep(&mut area);
    wide_registers::clear();
}

/// Makes the compiler write `bytes` to the stack, where they are.
fn keep<const N: usize>(bytes: &mut [u8; N]) {
    // SAFETY: nothing is executed. The compiler has to assume that the bytes are read, and others written.
    unsafe { asm!("/* {} */", in(reg) bytes.as_mut_ptr(), options(nostack, preserves_flags)) };
}

/// The registers that contain most of a cipher's state.
#[cfg(target_arch = "x86_64")]
mod wide_registers {
    use std::arch::asm;
    use std::arch::x86_64::_mm256_zeroall;

    pub(super) fn clear() {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the processor has the feature.
            unsafe { clear_upper_half() };
        }
        if is_x86_feature_detected!("avx") {
            // SAFETY: the processor has the feature.
            unsafe { _mm256_zeroall() };
        } else {
            clear_narrow();
        }
    }

    /// Clears what every processor has.
    pub(super) fn clear_narrow() {
        // SAFETY: the registers are declared as changed.
        unsafe {
            asm!(
                "pxor xmm0, xmm0",
                "pxor xmm1, xmm1",
                "pxor xmm2, xmm2",
                "pxor xmm3, xmm3",
                "pxor xmm4, xmm4",
                "pxor xmm5, xmm5",
                "pxor xmm6, xmm6",
                "pxor xmm7, xmm7",
                "pxor xmm8, xmm8",
                "pxor xmm9, xmm9",
                "pxor xmm10, xmm10",
                "pxor xmm11, xmm11",
                "pxor xmm12, xmm12",
                "pxor xmm13, xmm13",
                "pxor xmm14, xmm14",
                "pxor xmm15, xmm15",
                out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _,
                out("xmm4") _, out("xmm5") _, out("xmm6") _, out("xmm7") _,
                out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
                out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _,
                options(nomem, nostack, preserves_flags)
            );
        }
    }

    /// Clears those that `vzeroall` does not: number 16 to 31.
    #[target_feature(enable = "avx512f")]
    fn clear_upper_half() {
        // SAFETY: the registers are declared as changed.
        unsafe {
            asm!(
                "vpxorq zmm16, zmm16, zmm16",
                "vpxorq zmm17, zmm17, zmm17",
                "vpxorq zmm18, zmm18, zmm18",
                "vpxorq zmm19, zmm19, zmm19",
                "vpxorq zmm20, zmm20, zmm20",
                "vpxorq zmm21, zmm21, zmm21",
                "vpxorq zmm22, zmm22, zmm22",
                "vpxorq zmm23, zmm23, zmm23",
                "vpxorq zmm24, zmm24, zmm24",
                "vpxorq zmm25, zmm25, zmm25",
                "vpxorq zmm26, zmm26, zmm26",
                "vpxorq zmm27, zmm27, zmm27",
                "vpxorq zmm28, zmm28, zmm28",
                "vpxorq zmm29, zmm29, zmm29",
                "vpxorq zmm30, zmm30, zmm30",
                "vpxorq zmm31, zmm31, zmm31",
                out("zmm16") _, out("zmm17") _, out("zmm18") _, out("zmm19") _,
                out("zmm20") _, out("zmm21") _, out("zmm22") _, out("zmm23") _,
                out("zmm24") _, out("zmm25") _, out("zmm26") _, out("zmm27") _,
                out("zmm28") _, out("zmm29") _, out("zmm30") _, out("zmm31") _,
                options(nomem, nostack, preserves_flags)
            );
        }
    }
}

/// Elsewhere the registers are overwritten by what the thread does next.
#[cfg(not(target_arch = "x86_64"))]
mod wide_registers {
    pub(super) const fn clear() {}
}

#[cfg(test)]
mod tests;
