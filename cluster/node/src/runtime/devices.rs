//! Which devices a container may use, in cgroup version 2: a small program in the kernel's own machine code that is
//! asked at each access. It means the same as the rules of version 1 in [`super::cgroups`].

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use nix::libc;

/// One instruction, as the kernel lays it out (`struct bpf_insn`).
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

const LOAD_WORD: u8 = 0x61;
const MOVE: u8 = 0xb7;
const SHIFT_RIGHT: u8 = 0x77;
const AND: u8 = 0x57;
const COPY: u8 = 0xbf;
const JUMP_EQUAL: u8 = 0x15;
const JUMP_NOT_EQUAL: u8 = 0x55;
const EXIT: u8 = 0x95;

const MKNOD: i32 = 1;
const CHARACTER: i32 = 2;

fn op(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { code, registers: to | from << 4, offset, immediate }
}

/// Making device nodes is allowed (using them is what counts); terminals, and null, zero, full, random, urandom, tty,
/// console, ptmx; nothing else.
fn program() -> Vec<Instruction> {
    const ALLOWED: [(i32, &[i32]); 2] = [(1, &[3, 5, 7, 8, 9]), (5, &[0, 1, 2])];
    // Register 1 points to { access << 16 | type, major, minor }.
    let mut code = vec![
        op(LOAD_WORD, 2, 1, 0, 0),
        op(COPY, 3, 2, 0, 0),
        op(SHIFT_RIGHT, 3, 0, 0, 16),
        op(AND, 2, 0, 0, 0xffff),
        op(LOAD_WORD, 4, 1, 4, 0),
        op(LOAD_WORD, 5, 1, 8, 0),
        op(MOVE, 0, 0, 0, 1),
        op(JUMP_NOT_EQUAL, 3, 0, 1, MKNOD),
        op(EXIT, 0, 0, 0, 0),
    ];
    let mut tests = vec![op(JUMP_EQUAL, 4, 0, 0, 136)];
    for (major, minors) in ALLOWED {
        tests.push(op(JUMP_NOT_EQUAL, 4, 0, minors.len() as i16, major));
        tests.extend(minors.iter().map(|minor| op(JUMP_EQUAL, 5, 0, 0, *minor)));
    }
    // Every "equal" leads behind the refusal at the end, to the exit with 1.
    let length = tests.len();
    for (at, test) in tests.iter_mut().enumerate() {
        if test.code == JUMP_EQUAL {
            test.offset = (length - at) as i16;
        }
    }
    code.push(op(JUMP_NOT_EQUAL, 2, 0, length as i16, CHARACTER));
    code.extend(tests);
    code.extend([op(MOVE, 0, 0, 0, 0), op(EXIT, 0, 0, 0, 0)]);
    code
}

const PROG_LOAD: libc::c_long = 5;
const PROG_ATTACH: libc::c_long = 8;
const PROG_DETACH: libc::c_long = 9;
const CGROUP_DEVICE_PROGRAM: u32 = 15;
const CGROUP_DEVICE_HOOK: u32 = 6;

/// The beginning of `union bpf_attr` for loading a program.
#[repr(C)]
#[derive(Default)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
}

/// The beginning of `union bpf_attr` for attaching one.
#[repr(C)]
#[derive(Default)]
struct Attach {
    target: u32,
    program: u32,
    hook: u32,
    flags: u32,
}

fn bpf<T>(command: libc::c_long, attributes: &T) -> io::Result<i32> {
    // SAFETY: the structure is a valid beginning of the kernel's union for this command, its length goes along, and what
    // it points to (instructions, license) outlives the call.
    #[allow(unsafe_code)]
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}

/// Attaches the program to the cgroup in `folder`; it lives as long as the group.
pub(super) fn restrict(folder: &Path) -> io::Result<()> {
    let program = program();
    let attributes = Load {
        kind: CGROUP_DEVICE_PROGRAM,
        count: program.len() as u32,
        instructions: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        ..Load::default()
    };
    let named = |error: io::Error| {
        io::Error::new(error.kind(), format!("cannot restrict devices of a cgroup: {error}"))
    };
    let program = bpf(PROG_LOAD, &attributes).map_err(named)?;
    // SAFETY: the kernel has just made this descriptor for us.
    #[allow(unsafe_code)]
    let program = unsafe { OwnedFd::from_raw_fd(program) };
    let target = File::open(folder)?;
    let attributes = Attach {
        target: target.as_raw_fd() as u32,
        program: program.as_raw_fd() as u32,
        hook: CGROUP_DEVICE_HOOK,
        flags: 0,
    };
    bpf(PROG_ATTACH, &attributes).map(drop).map_err(named)
}

/// Detaches it.
pub(super) fn release(folder: &Path) -> io::Result<()> {
    let target = File::open(folder)?;
    let attributes =
        Attach { target: target.as_raw_fd() as u32, hook: CGROUP_DEVICE_HOOK, ..Attach::default() };
    bpf(PROG_DETACH, &attributes).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel's machine does with the program.
    fn allowed(kind: i32, access: i32, major: i32, minor: i32) -> bool {
        let context = [access << 16 | kind, major, minor];
        let code = program();
        let (mut registers, mut at) = ([0_i64; 6], 0_usize);
        loop {
            let Instruction { code: operation, registers: both, offset, immediate } = code[at];
            let (to, from) = (usize::from(both & 15), usize::from(both >> 4));
            at += 1;
            let jump = match operation {
                LOAD_WORD => {
                    registers[to] = i64::from(context[usize::try_from(offset).unwrap() / 4]);
                    false
                }
                COPY => {
                    registers[to] = registers[from];
                    false
                }
                MOVE => {
                    registers[to] = immediate.into();
                    false
                }
                SHIFT_RIGHT => {
                    registers[to] >>= immediate;
                    false
                }
                AND => {
                    registers[to] &= i64::from(immediate);
                    false
                }
                JUMP_EQUAL => registers[to] == i64::from(immediate),
                JUMP_NOT_EQUAL => registers[to] != i64::from(immediate),
                EXIT => return registers[0] == 1,
                other => unreachable!("{other}"),
            };
            if jump {
                at = at.checked_add_signed(offset.into()).unwrap();
            }
        }
    }

    #[test]
    fn null_and_terminals_but_no_disks() {
        const BLOCK: i32 = 1;
        const READ_WRITE: i32 = 6;
        for (major, minor) in
            [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2), (136, 0), (136, 77)]
        {
            assert!(allowed(CHARACTER, READ_WRITE, major, minor), "{major}:{minor}");
        }
        for (major, minor) in [(1, 1), (1, 4), (5, 3), (10, 229), (4, 64)] {
            assert!(!allowed(CHARACTER, READ_WRITE, major, minor), "{major}:{minor}");
        }
        assert!(!allowed(BLOCK, READ_WRITE, 1, 3) && !allowed(BLOCK, 2, 254, 0));
        assert!(allowed(BLOCK, MKNOD, 254, 0));
        assert!(!allowed(BLOCK, MKNOD | 2, 254, 0));
    }
}
