//! Memory for keys. It is mapped by itself between two ranges that nobody can touch, locked, left out of core files, and
//! empty in a forked process. A key is wiped when it is dropped.

use std::alloc::{Layout, handle_alloc_error};
use std::mem::{MaybeUninit, needs_drop};
use std::ops::{Deref, DerefMut};
use std::ptr::{NonNull, null_mut};
use std::slice;
use std::sync::{Mutex, PoisonError};

use rand_core::CryptoRng;
use zeroize::Zeroize;

/// 32 secret bytes in the memory for keys. Moving this moves no byte of it.
#[derive(Default)]
pub struct Secret(Guarded<[u8; 32]>);

impl Secret {
    /// A copy of these bytes, which the caller has to wipe.
    pub fn copy_of(bytes: &[u8; 32]) -> Self {
        let mut secret = Self::default();
        secret.copy_from_slice(bytes);
        secret
    }

    /// Draws a secret.
    pub fn draw(rng: &mut (impl CryptoRng + ?Sized)) -> Self {
        let mut secret = Self::default();
        rng.fill_bytes(&mut *secret);
        secret
    }
}

impl Deref for Secret {
    type Target = [u8; 32];

    fn deref(&self) -> &[u8; 32] {
        &self.0
    }
}

impl DerefMut for Secret {
    fn deref_mut(&mut self) -> &mut [u8; 32] {
        &mut self.0
    }
}

/// A value in the memory for keys, at a place where it stays. Its bytes are wiped when it is dropped.
pub(crate) struct Guarded<T>(NonNull<T>);

// SAFETY: the value is owned, as in a `Box`.
unsafe impl<T: Send> Send for Guarded<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Guarded<T> {}

impl<T> Guarded<T> {
    /// The blocks that the value takes.
    const BLOCKS: usize = size_of::<T>().div_ceil(BLOCK);

    /// Moves `value` there. What it leaves behind on the stack is the caller's to wipe.
    pub(crate) fn new(value: T) -> Self {
        const {
            assert!(!needs_drop::<T>(), "wiping would skip the value's own destructor");
            assert!(align_of::<T>() <= BLOCK && Self::BLOCKS <= BLOCKS);
        }
        let place = take(Self::BLOCKS).cast();
        // SAFETY: the place is aligned to a block, as large as the value, and nobody else's until it is given back.
        unsafe { place.write(value) };
        Self(place)
    }
}

impl<const N: usize> Default for Guarded<[u8; N]> {
    fn default() -> Self {
        Self::new([0; N])
    }
}

impl<T> Deref for Guarded<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: `new` has written a value. Only `drop` writes anything else, and no `self` exists after that.
        unsafe { self.0.as_ref() }
    }
}

impl<T> DerefMut for Guarded<T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as in `deref`, and `self` is borrowed exclusively.
        unsafe { self.0.as_mut() }
    }
}

impl<T> Drop for Guarded<T> {
    fn drop(&mut self) {
        let words = Self::BLOCKS * BLOCK / size_of::<u64>();
        // SAFETY: the blocks are ours, and contain whole words. The value in them has no destructor, and is not used again.
        let bytes =
            unsafe { slice::from_raw_parts_mut(self.0.cast::<MaybeUninit<u64>>().as_ptr(), words) };
        bytes.zeroize();
        give_back(self.0.cast(), Self::BLOCKS);
    }
}

/// Memory is given out in blocks of this size: a line of the processor's cache.
const BLOCK: usize = 64;
/// The blocks of an arena. A tunnel with all its sessions takes a quarter of them.
const BLOCKS: usize = 1024;
/// The length of an arena, and of the ranges around it: pages are at most as large.
const ARENA: usize = BLOCK * BLOCKS;

/// All arenas: one, unless a process has the keys of many tunnels.
static ARENAS: Mutex<Vec<Arena>> = Mutex::new(Vec::new());

fn take(count: usize) -> NonNull<u8> {
    let mut arenas = ARENAS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(place) = arenas.iter_mut().find_map(|arena| arena.take(count)) {
        return place;
    }
    let mut arena =
        Arena::map().unwrap_or_else(|| handle_alloc_error(Layout::new::<[u8; ARENA]>()));
    let place = arena.take(count).expect("a new arena has room for any key");
    arenas.push(arena);
    place
}

fn give_back(place: NonNull<u8>, count: usize) {
    let mut arenas = ARENAS.lock().unwrap_or_else(PoisonError::into_inner);
    arenas.iter_mut().for_each(|arena| arena.give_back(place, count));
}

/// A range of memory for keys. It stays until the process ends. Which blocks are taken is noted elsewhere, so that it is
/// known in a forked process too.
struct Arena {
    start: NonNull<u8>,
    taken: [bool; BLOCKS],
}

// SAFETY: the memory belongs to no thread.
unsafe impl Send for Arena {}

impl Arena {
    /// `None` if the kernel has no memory left.
    fn map() -> Option<Self> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping, wherever the kernel likes.
        let all = unsafe { libc::mmap(null_mut(), 3 * ARENA, libc::PROT_NONE, flags, -1, 0) };
        if all == libc::MAP_FAILED {
            return None;
        }
        let start = NonNull::new(all.cast::<u8>().wrapping_add(ARENA))?;
        let at = start.as_ptr().cast();
        // SAFETY: this is the middle of the new mapping, and nobody has a reference to it.
        unsafe {
            if libc::mprotect(at, ARENA, libc::PROT_READ | libc::PROT_WRITE) != 0 {
                return None;
            }
            // An old kernel, or a limit, may refuse one of these. The others still have their use.
            libc::madvise(at, ARENA, libc::MADV_DONTDUMP);
            libc::madvise(at, ARENA, libc::MADV_WIPEONFORK);
            libc::mlock(at, ARENA);
        }
        Some(Self { start, taken: [false; BLOCKS] })
    }

    /// `count` consecutive blocks.
    fn take(&mut self, count: usize) -> Option<NonNull<u8>> {
        let is_free = |first: &usize| !self.taken[*first..][..count].contains(&true);
        let first = (0..=BLOCKS - count).find(is_free)?;
        self.taken[first..][..count].fill(true);
        // SAFETY: the blocks lie in the mapping.
        Some(unsafe { self.start.add(first * BLOCK) })
    }

    /// Frees these blocks if they are of this arena.
    fn give_back(&mut self, place: NonNull<u8>, count: usize) {
        let offset = place.addr().get().wrapping_sub(self.start.addr().get());
        if offset < ARENA {
            self.taken[offset / BLOCK..][..count].fill(false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_do_not_overlap_and_freed_blocks_are_used_again() {
        let mut all: Vec<_> = (0..3000_u16).map(|n| Guarded::new([n; 40])).collect();
        assert!(all.iter().zip(0..).all(|(value, n)| **value == [n; 40]));
        let places: Vec<_> = all.iter().map(|value| value.0).collect();
        all.truncate(10);
        // Other tests take blocks and give them back meanwhile.
        let again: Vec<_> = (0..3000_u16).map(|n| Guarded::new([n; 40])).collect();
        assert!(again.iter().filter(|value| places.contains(&value.0)).count() > 1000);
        assert!(all.iter().zip(0..).all(|(value, n)| **value == [n; 40]));
    }

    #[test]
    fn the_memory_is_left_out_of_core_files_and_of_forked_processes() {
        let secret = Secret::copy_of(&[7; 32]);
        let at = secret.as_ptr().addr();
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut lines = maps.lines().skip_while(|line| !contains(line, at));
        let flags = lines.find_map(|line| line.strip_prefix("VmFlags:")).unwrap();
        let has = |flag| flags.split_whitespace().any(|found| found == flag);
        assert!(has("dd") && has("wf"), "{flags}");
        for edge in [at - at % ARENA - 1, at] {
            assert!(maps.lines().any(|line| contains(line, edge)), "nothing is mapped at {edge:x}");
        }
    }

    /// Whether this line begins a mapping with this address.
    fn contains(line: &str, at: usize) -> bool {
        let range = line.split_once(' ').and_then(|(range, _)| range.split_once('-'));
        let number = |text| usize::from_str_radix(text, 16).ok();
        range
            .and_then(|(start, end)| Some((number(start)?..number(end)?).contains(&at)))
            .unwrap_or(false)
    }
}
