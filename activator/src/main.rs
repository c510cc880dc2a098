//! The activator as a process of its own, on a cluster.

fn main() -> std::process::ExitCode {
    ebb_activator::main()
}
