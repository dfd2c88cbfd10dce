//! A quiet pass beside a client that makes the same requests and does nothing else.

use crate::bare::Bare;
use crate::lanes::Fleet;
use crate::recorder::Recorder;
use crate::scene::{CONCURRENCY, Scene};
use crate::table::{Limit, Row, median};

/// Wall time of a quiet pass, as a multiple of what the bare client takes.
const TIMES_BARE: f64 = 1.25;
/// The large fleet has so many times the connectors of the small one.
const LARGE: usize = 3;
/// Pairs of a pass and the client, for each repetition.
const PAIRS: usize = 5;

pub(crate) fn rows(scene: &Scene) -> Vec<Row> {
    [scene.connectors, LARGE * scene.connectors].into_iter().flat_map(|count| beside(scene, count)).collect()
}

fn beside(scene: &Scene, count: usize) -> [Row; 2] {
    let fleet = Fleet::deployed(scene, count, 0);
    let bare = bare(scene, &fleet);
    let (mut alone, mut passes) = (Vec::new(), Vec::new());
    for pair in 0..scene.repeat * PAIRS {
        // Each comes first in turn.
        for turn in 0..2 {
            if (pair + turn) % 2 == 0 {
                fleet.platform.forget_calls();
                alone.push(bare.run().as_secs_f64());
            } else {
                passes.push(fleet.quiet());
            }
        }
    }
    let ratios: Vec<f64> = passes.iter().zip(&alone).map(|(pass, bare)| pass.0 / bare).collect();
    let mut quiet = Row {
        wall: passes.iter().map(|pass| pass.0).collect(),
        cpu: passes.iter().map(|pass| pass.1).collect(),
        peak: passes.iter().map(|pass| pass.2).collect(),
        platform_calls: Some(fleet.platform.calls()),
        ..Row::new(format!("quiet pass beside it, {count} running"))
    };
    quiet.limits.push(Limit::most("wall", " × bare client", median(&ratios), TIMES_BARE));
    [Row { wall: alone, ..Row::new(format!("bare client, the requests of {count} running")) }, quiet]
}

/// The client that makes the requests of a quiet pass over this fleet.
fn bare(scene: &Scene, fleet: &Fleet) -> Bare {
    let address = fleet.platform.url.strip_prefix("http://").expect("an http:// address");
    let recorder = Recorder::new(scene.socket(), address);
    let mut program = fleet.program.clone();
    for (name, value) in &mut program.variables {
        match name.as_str() {
            "DOCKER_HOST" => *value = recorder.docker_host(),
            "OPENCTI__URL" => value.clone_from(&recorder.url),
            _ => {}
        }
    }
    program.run();
    Bare::new(scene.socket(), address, CONCURRENCY, recorder.take(), fleet.connectors)
}
