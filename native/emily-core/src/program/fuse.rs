//! Fusing: runs of ops become one step each (see `fused`), and registers move accordingly.

use super::fused::Fused;
use super::{Program, Step, Template};
use crate::error::Result;
use crate::slot::Home;
use std::ops::Range;
use std::sync::Arc;

/// Steps whose runs of ops are fused, and where the outputs are now.
pub(super) fn fuse(
    program: &Program,
    types: &[Template],
    home: &Home,
) -> Result<(Vec<Step>, Vec<usize>)> {
    let first = program.inputs.len() + program.constants.len();
    let runs = Runs::of(program, first);
    // Where each register is in the new program; those that only a run's own ops read are nowhere.
    let mut places: Vec<Option<usize>> = (0..first).map(Some).collect();
    let mut made = first;
    let mut steps = Vec::new();
    let mut index = 0;
    while index < program.steps.len() {
        let run = runs.at(index);
        let registers = runs.registers(&run);
        if run.len() == 1 {
            places
                .extend(registers.clone().map(|register| Some(register - registers.start + made)));
            made += registers.len();
            steps.push(program.steps[index].moved(&places));
        } else {
            let kept: Vec<_> =
                registers.clone().filter(|&register| runs.outlives[register]).collect();
            if !kept.is_empty() {
                let (inputs, fused) = join(program, &runs, run.clone(), &kept, types, home)?;
                let inputs = inputs.iter().map(|&register| place(&places, register)).collect();
                steps.push(Step::Fused(inputs, Arc::new(fused)));
            }
            for register in registers {
                let position = kept.iter().position(|&one| one == register);
                places.push(position.map(|position| made + position));
            }
            made += kept.len();
        }
        index = run.end;
    }
    Ok((steps, program.outputs.iter().map(|&register| place(&places, register)).collect()))
}

fn place(places: &[Option<usize>], register: usize) -> usize {
    places[register].expect("what is read outside its run is kept")
}

/// The runs of ops in a program.
struct Runs {
    /// Between other steps.
    ranges: Vec<Range<usize>>,
    /// The first register of each step, and the number of registers.
    starts: Vec<usize>,
    /// For each register, whether it is read outside the run that makes it.
    outlives: Vec<bool>,
}

impl Runs {
    fn of(program: &Program, first: usize) -> Self {
        let mut ranges: Vec<Range<usize>> = Vec::new();
        let mut starts = vec![first];
        for (index, step) in program.steps.iter().enumerate() {
            starts.push(starts[index] + step.output_count());
            match ranges.last_mut() {
                Some(run) if run.end == index && matches!(step, Step::Apply(..)) => run.end += 1,
                _ if matches!(step, Step::Apply(..)) => ranges.push(index..index + 1),
                _ => {}
            }
        }
        let mut runs = Runs { ranges, starts, outlives: Vec::new() };
        let mut outlives = vec![false; *runs.starts.last().expect("it has one more than steps")];
        for (index, step) in program.steps.iter().enumerate() {
            let own = runs.registers(&runs.at(index));
            for register in step.reads() {
                outlives[register] |= !own.contains(&register);
            }
        }
        program.outputs.iter().for_each(|&register| outlives[register] = true);
        runs.outlives = outlives;
        runs
    }

    /// The run that a step is in, which for other steps than ops is the step alone.
    fn at(&self, index: usize) -> Range<usize> {
        let found = self.ranges.partition_point(|run| run.end <= index);
        match self.ranges.get(found) {
            Some(run) if run.contains(&index) => run.clone(),
            _ => index..index + 1,
        }
    }

    /// The registers that a run makes.
    fn registers(&self, run: &Range<usize>) -> Range<usize> {
        self.starts[run.start]..self.starts[run.end]
    }
}

/// Fuses a run. Returns the registers that it takes, too.
fn join(
    program: &Program,
    runs: &Runs,
    run: Range<usize>,
    kept: &[usize],
    types: &[Template],
    home: &Home,
) -> Result<(Vec<usize>, Fused)> {
    let own = runs.registers(&run);
    let constant = |register: usize| {
        let index = register.checked_sub(program.inputs.len())?;
        program.constants.get(index).filter(|tensor| tensor.shape().iter().all(|&n| n == 1))
    };
    let (mut passed, mut captured) = (Vec::new(), Vec::new());
    let mut places: Vec<Option<usize>> = vec![None; own.start];
    for register in program.steps[run.clone()].iter().flat_map(Step::reads) {
        if register >= own.start || places[register].is_some() {
            continue;
        }
        let list = if constant(register).is_some() { &mut captured } else { &mut passed };
        // Its place among its kind, until the number of those that are passed is known.
        places[register] = Some(list.len());
        list.push(register);
    }
    for &register in &captured {
        places[register] = places[register].map(|place| place + passed.len());
    }
    let made = passed.len() + captured.len();
    places.extend(own.clone().map(|register| Some(register - own.start + made)));
    let mut body = Program {
        inputs: passed.iter().map(|&register| types[register].clone()).collect(),
        constants: captured.iter().filter_map(|&register| constant(register)).cloned().collect(),
        steps: program.steps[run].iter().map(|step| step.moved(&places)).collect(),
        outputs: kept.iter().map(|&register| place(&places, register)).collect(),
        results: kept.iter().map(|&register| types[register].clone()).collect(),
        expiring: Vec::new(),
        register_count: 0,
        device: home.device(),
        size: program.size,
        can_fail: program.can_fail,
    };
    body.plan_registers();
    Ok((passed, Fused::new(Arc::new(body))?))
}

impl Step {
    /// The same with its registers elsewhere.
    fn moved(&self, places: &[Option<usize>]) -> Step {
        let one = |register: usize| place(places, register);
        let all = |registers: &[usize]| registers.iter().map(|&register| one(register)).collect();
        match self {
            Step::Apply(op, inputs, count) => {
                let inputs = inputs.iter().map(|input| input.map(one)).collect();
                Step::Apply(op.clone(), inputs, *count)
            }
            Step::Fused(inputs, fused) => Step::Fused(all(inputs), Arc::clone(fused)),
            Step::While { state, captures, condition, body } => Step::While {
                state: all(state),
                captures: all(captures),
                condition: Arc::clone(condition),
                body: Arc::clone(body),
            },
            Step::Cond { predicate, captures, on_true, on_false } => Step::Cond {
                predicate: one(*predicate),
                captures: all(captures),
                on_true: Arc::clone(on_true),
                on_false: Arc::clone(on_false),
            },
            Step::Call { inputs, key, outputs } => {
                Step::Call { inputs: all(inputs), key: *key, outputs: outputs.clone() }
            }
        }
    }
}
