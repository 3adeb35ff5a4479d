//! Every scenario, in one binary.
//!
//! `cargo test -p vpnd-tests --test scenarios -- interop` runs the scenarios whose name contains the word;
//! `VPND_TESTS=long` selects the long tests.

mod bridges;
mod capture;
mod carrier;
mod change;
mod compatibility;
mod continuity;
mod cycles;
mod device;
mod doctor;
mod duplicate;
mod ecn;
mod exact;
mod examples;
mod expiry;
mod failover;
mod files;
mod firewall;
mod flood;
mod guard;
mod guarded;
mod hooks;
mod hostile;
mod import;
mod interop;
mod kernel;
mod keys;
mod lan;
mod lans;
mod left;
mod logs;
mod loops;
mod lossy;
mod manual;
mod monitoring;
mod moves;
mod multicast;
mod names;
mod narrow;
mod nested;
mod pair;
mod pairing;
mod path_mtu;
mod profile;
mod queues;
mod reach;
mod refusal;
mod rekey;
mod reload;
mod restart;
mod roaming;
mod routes;
mod routing;
mod segmentation;
mod services;
mod settings;
mod sites;
mod socket;
mod spanning;
mod speed;
mod states;
mod suspend;
mod system;
mod tap;
mod tunnel;
mod tuntap;
mod uapi;
mod uplinks;
mod vm;
mod wg_quick;

use std::process::ExitCode;

use vpnd_tests::runner;

fn main() -> ExitCode {
    let rooms = [
        rekey::scenarios(),
        reload::scenarios(),
        expiry::scenarios(),
        failover::scenarios(),
        lossy::scenarios(),
        monitoring::scenarios(),
        moves::scenarios(),
        interop::scenarios(),
        bridges::scenarios(),
        capture::scenarios(),
        carrier::scenarios(),
        change::scenarios(),
        compatibility::scenarios(),
        device::scenarios(),
        doctor::scenarios(),
        duplicate::scenarios(),
        kernel::scenarios(),
        keys::scenarios(),
        left::scenarios(),
        logs::scenarios(),
        manual::scenarios(),
        pair::scenarios(),
        pairing::scenarios(),
        path_mtu::scenarios(),
        profile::scenarios(),
        queues::scenarios(),
        reach::scenarios(),
        refusal::scenarios(),
        roaming::scenarios(),
        segmentation::scenarios(),
        services::scenarios(),
        routing::scenarios(),
        restart::scenarios(),
        hostile::scenarios(),
        import::scenarios(),
        ecn::scenarios(),
        guarded::scenarios(),
        names::scenarios(),
        narrow::scenarios(),
        socket::scenarios(),
        routes::scenarios(),
        guard::scenarios(),
        loops::scenarios(),
        continuity::scenarios(),
        cycles::scenarios(),
        system::scenarios(),
        tap::scenarios(),
        tuntap::scenarios(),
        uapi::scenarios(),
        wg_quick::scenarios(),
        spanning::scenarios(),
        lan::scenarios(),
        multicast::scenarios(),
        vm::scenarios(),
        settings::scenarios(),
        sites::scenarios(),
        nested::scenarios(),
        uplinks::scenarios(),
        hooks::scenarios(),
        files::scenarios(),
        firewall::scenarios(),
        flood::scenarios(),
        examples::scenarios(),
        exact::scenarios(),
        speed::scenarios(),
        states::scenarios(),
        suspend::scenarios(),
    ];
    runner::main(rooms.into_iter().flatten().collect())
}
