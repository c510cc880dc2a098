//! The seccomp profile `RuntimeDefault`: the system calls that containerd's default profile allows, made into programs
//! of the kernel's filter machine by the crate seccompiler. All others fail with EPERM; those that are newer than the
//! profile, and clone3 (whose flags no filter can see), with ENOSYS, so that programs take another way.
//!
//! Two filters are loaded, since a filter has one answer for what it names. Programs of another architecture (32-bit ones
//! on x86_64) are ended.

mod calls;

use std::collections::BTreeMap;

use nix::libc;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};

use super::sys;
use crate::spec::{DEFAULT_CAPABILITIES, Process, Seccomp};

/// Profiles that are made already: making one takes longer than all the rest of a start.
#[derive(Debug, Default)]
pub(super) struct Profiles {
    made: BTreeMap<u64, Vec<BpfProgram>>,
}

impl Profiles {
    /// With those for the usual capabilities: the default ones, and none.
    pub(super) fn usual() -> Self {
        let usual = Process {
            capabilities: DEFAULT_CAPABILITIES.iter().map(|name| (*name).to_owned()).collect(),
            ..Process::default()
        };
        let kinds = [0, relevant(usual.capability_bits())];
        Self { made: kinds.into_iter().filter_map(|kind| Some((kind, programs(kind).ok()?))).collect() }
    }

    /// Loads a profile for the calling process. `capabilities` (bit n for capability n) widen the default profile, as they
    /// do elsewhere. Needs CAP_SYS_ADMIN or no_new_privs.
    pub(super) fn load(&self, profile: Seccomp, capabilities: u64) -> Result<(), String> {
        if profile == Seccomp::Unconfined {
            return Ok(());
        }
        let fail = |error: &dyn std::fmt::Display| format!("cannot load the seccomp profile: {error}");
        let fresh;
        let wanted = match self.made.get(&relevant(capabilities)) {
            Some(made) => made,
            None => {
                fresh = programs(capabilities).map_err(|error| fail(&error))?;
                &fresh
            }
        };
        for program in wanted {
            let program: Vec<libc::sock_filter> = program
                .iter()
                .map(|step| libc::sock_filter { code: step.code, jt: step.jt, jf: step.jf, k: step.k })
                .collect();
            sys::load_filter(&program).map_err(|error| fail(&error))?;
        }
        Ok(())
    }
}

/// The capabilities on which a profile depends.
fn relevant(capabilities: u64) -> u64 {
    calls::WITH_CAPABILITY.iter().fold(0, |set, (number, _)| set | capabilities & (1 << number))
}

const SYS_ADMIN: u32 = 21;

fn programs(capabilities: u64) -> Result<Vec<BpfProgram>, seccompiler::BackendError> {
    let has = |capability: u32| capabilities & (1 << capability) != 0;
    let architecture = TargetArch::try_from(std::env::consts::ARCH)?;
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        calls::ALWAYS.iter().map(|call| (*call, Vec::new())).collect();
    for (capability, calls) in calls::WITH_CAPABILITY {
        if has(*capability) {
            rules.extend(calls.iter().map(|call| (*call, Vec::new())));
        }
    }
    let condition = SeccompCondition::new;
    let not_vsock = condition(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, libc::AF_VSOCK as u64)?;
    rules.insert(libc::SYS_socket, vec![SeccompRule::new(vec![not_vsock])?]);
    // The execution domains of Linux itself, with and without randomised addresses, and the question which one it is.
    let mut domains = Vec::new();
    for domain in [0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff] {
        domains.push(SeccompRule::new(vec![condition(
            0,
            SeccompCmpArgLen::Dword,
            SeccompCmpOp::Eq,
            domain,
        )?])?);
    }
    rules.insert(libc::SYS_personality, domains);
    if !has(SYS_ADMIN) {
        let new_namespaces = SeccompCmpOp::MaskedEq(calls::NAMESPACES);
        let plain = condition(0, SeccompCmpArgLen::Qword, new_namespaces, 0)?;
        rules.insert(libc::SYS_clone, vec![SeccompRule::new(vec![plain])?]);
    }
    let permission = SeccompAction::Errno(libc::EPERM as u32);
    let allowed = SeccompFilter::new(rules, permission, SeccompAction::Allow, architecture)?;
    let mut absent: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    if !has(SYS_ADMIN) {
        absent.insert(libc::SYS_clone3, Vec::new());
    }
    for call in calls::NEWER {
        absent.insert(*call, Vec::new());
    }
    let no_such_call = SeccompAction::Errno(libc::ENOSYS as u32);
    let absent = SeccompFilter::new(absent, SeccompAction::Allow, no_such_call, architecture)?;
    // Of two refusals that of the filter loaded last counts.
    Ok(vec![allowed.try_into()?, absent.try_into()?])
}

/// What a profile's name means: the type of a securityContext's seccompProfile.
pub(crate) fn profile(kind: Option<&str>) -> Result<Seccomp, String> {
    match kind {
        None | Some("Unconfined") => Ok(Seccomp::Unconfined),
        Some("RuntimeDefault") => Ok(Seccomp::RuntimeDefault),
        Some("Localhost") => {
            Err("seccompProfile.type Localhost is not supported by this node, which keeps no profiles \
             of its own: use RuntimeDefault or Unconfined"
                .to_owned())
        }
        Some(other) => {
            Err(format!("seccompProfile.type {other:?} is unknown: use RuntimeDefault or Unconfined"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel answers to a call with this first argument: the strictest of all filters.
    fn answer(capabilities: u64, call: i64, argument: u64) -> u32 {
        let rank = |action: u32| match action & 0xffff_0000 {
            libc::SECCOMP_RET_ALLOW => 3,
            libc::SECCOMP_RET_ERRNO => 2,
            _ => 1,
        };
        let results = programs(capabilities).unwrap();
        // Among equals the filter loaded last counts.
        results
            .iter()
            .rev()
            .map(|program| run(program, call, argument))
            .min_by_key(|action| rank(*action))
            .unwrap()
    }

    /// The classic BPF that seccompiler writes: loads, jumps and returns.
    fn run(program: &BpfProgram, call: i64, argument: u64) -> u32 {
        let architecture = if cfg!(target_arch = "x86_64") { 0xc000_003e } else { 0xc000_00b7_u32 };
        let mut data = [0_u8; 64];
        data[0..4].copy_from_slice(&(call as u32).to_ne_bytes());
        data[4..8].copy_from_slice(&architecture.to_ne_bytes());
        data[16..24].copy_from_slice(&argument.to_ne_bytes());
        let (mut accumulator, mut at) = (0_u32, 0);
        loop {
            let step = &program[at];
            at += 1;
            let jump = |yes: bool| usize::from(if yes { step.jt } else { step.jf });
            match step.code {
                0x20 => {
                    let from = step.k as usize;
                    accumulator = u32::from_ne_bytes(data[from..from + 4].try_into().unwrap());
                }
                0x54 => accumulator &= step.k,
                0x05 => at += step.k as usize,
                0x15 => at += jump(accumulator == step.k),
                0x25 => at += jump(accumulator > step.k),
                0x35 => at += jump(accumulator >= step.k),
                0x06 => return step.k,
                other => unreachable!("instruction {other:#x}"),
            }
        }
    }

    const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
    const EPERM: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
    const ENOSYS: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;

    #[test]
    fn what_programs_need_passes_and_what_reaches_the_machine_does_not() {
        for call in [libc::SYS_read, libc::SYS_execve, libc::SYS_openat2, libc::SYS_futex, libc::SYS_ptrace] {
            assert_eq!(answer(0, call, 0), ALLOW, "{call}");
        }
        for call in
            [libc::SYS_mount, libc::SYS_unshare, libc::SYS_reboot, libc::SYS_keyctl, libc::SYS_io_uring_setup]
        {
            assert_eq!(answer(0, call, 0), EPERM, "{call}");
        }
        let admin = 1 << SYS_ADMIN;
        assert_eq!(answer(admin, libc::SYS_mount, 0), ALLOW);
        assert_eq!(answer(admin, libc::SYS_reboot, 0), EPERM);
    }

    #[test]
    fn arguments_count() {
        assert_eq!(answer(0, libc::SYS_socket, libc::AF_INET as u64), ALLOW);
        assert_eq!(answer(0, libc::SYS_socket, libc::AF_VSOCK as u64), EPERM);
        assert_eq!(answer(0, libc::SYS_clone, libc::CLONE_VM as u64), ALLOW);
        assert_eq!(answer(0, libc::SYS_clone, libc::CLONE_NEWUSER as u64), EPERM);
        assert_eq!(answer(0, libc::SYS_personality, 0x8), ALLOW);
        assert_eq!(answer(0, libc::SYS_personality, 0x40_0000), EPERM);
        assert_eq!(answer(0, libc::SYS_clone3, 0), ENOSYS, "the C library falls back to clone");
        assert_eq!(answer(1 << SYS_ADMIN, libc::SYS_clone3, 0), ALLOW);
    }

    #[test]
    fn usual_profiles_are_made_ahead() {
        let profiles = Profiles::usual();
        let usual = crate::spec::capabilities(false, &[], &[], u64::MAX).unwrap();
        let bits = Process { capabilities: usual, ..Process::default() }.capability_bits();
        assert!(profiles.made.contains_key(&relevant(bits)) && profiles.made.contains_key(&relevant(1)));
        assert!(!profiles.made.contains_key(&relevant(1 << SYS_ADMIN)));
        assert_eq!(profiles.made[&relevant(bits)], programs(bits).unwrap());
    }

    #[test]
    fn names_of_profiles() {
        assert_eq!(profile(None), Ok(Seccomp::Unconfined));
        assert_eq!(profile(Some("RuntimeDefault")), Ok(Seccomp::RuntimeDefault));
        assert!(profile(Some("Localhost")).unwrap_err().contains("RuntimeDefault"));
        assert!(profile(Some("Other")).is_err());
    }
}
