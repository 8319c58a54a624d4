//! The contrastive stage: batches of queries with their documents, the objective, and its gradient, in one piece
//! or cached (arXiv 2101.06983): vectors first without activations, then each part of the batch again with.

use nsparse_core::{Cancel, Progress, SparseVector};
use nsparse_encoder::Parameters;

use crate::batches::Batch;
use crate::config::TrainConfig;
use crate::controller::{Controller, default_response};
use crate::data::TrainingData;
use crate::draw::Draw;
use crate::late_cache::LateCache;
use crate::lift::{is_wanted, is_weak, lift};
use crate::mixing::Mixer;
use crate::network::Network;
use crate::objective::{Objective, Pressure, Slopes};
use crate::parallel::Team;
use crate::probe;
use crate::query_side::QuerySide;
use crate::regularisers::{DocumentFrequencies, LexicalTerm};
use crate::sections::{Decay, FlopsForm, LearningRate, TeachersSection, TrainSection};
use crate::segments::parts;
use crate::stage::{Stage, StageMemory, Steering, StepOutcome};
use crate::teachers::{Request, TeacherEstimate, TeacherScores, TeacherWork, Teachers, training};
use crate::warm_start::{LexicalTargets, dropout_of};
use crate::{Error, Result};

/// A target is checked on some documents every so many steps.
const PROBE_EVERY: usize = 10;

/// Teachers are asked ahead about so many pairs at once.
const GROUP_PAIRS: usize = 2048;

/// The stage over a run's examples.
pub struct Contrastive<'a> {
    section: &'a TrainSection,
    data: &'a TrainingData,
    objective: Objective<'a>,
    mixer: Mixer,
    steps: usize,
    seed: u64,
    controller: Option<Controller>,
    frequencies: DocumentFrequencies,
    /// Share of the training queries that hold each token, where the target is expected matches.
    query_shares: Option<Vec<f32>>,
    /// What is learned on the query side.
    query_side: Option<QuerySide>,
    /// Documents that a probe draws from.
    probed: Vec<usize>,
    /// What the decoder's bias is raised by after the step.
    rise: Option<f32>,
    ensemble: &'a TeachersSection,
    /// Rank 0's.
    teachers: Option<Teachers>,
}

impl<'a> Contrastive<'a> {
    /// Over the examples that are not held out.
    ///
    /// # Errors
    /// If there is no example, or a term has nothing to act on: a positive for `InfoNCE`, scores for a stored
    /// teacher.
    pub fn new(config: &'a TrainConfig, data: &'a TrainingData, zeroed: &'a [bool]) -> Result<Self> {
        let section = &config.train;
        let dropped: usize = data.sets.iter().map(|s| s.counts.dropped).sum();
        if data.examples.is_empty() && dropped > 0 {
            return Err(Error::config_with_hint(
                format!(
                    "`train.short_rows: drop` left no training example: all {dropped} have fewer than {} negatives",
                    section.negatives
                ),
                "lower `train.negatives`, mine more, or use `take` or `fill`",
            ));
        }
        if data.examples.is_empty() {
            return Err(Error::config_with_hint(
                "There is no training example: no row and no judged pair is left to train on",
                "give `data.rows` or `data.sets`, or a data set with judgments for `data.split`; \
                 `train.steps: 0` stops after the warm start",
            ));
        }
        let l = &section.losses;
        if l.infonce.weight > 0.0 && data.examples.iter().all(|e| e.positive.is_none()) {
            return Err(Error::config_with_hint(
                "`train.losses.infonce.weight` is above 0, but no training row has a `pos`",
                "set it to 0, or give rows with `pos` and `negs`",
            ));
        }
        let stored = (l.kl.weight > 0.0 && l.kl.teacher == crate::sections::Teacher::Rows)
            || (l.margin_mse.weight > 0.0 && l.margin_mse.teacher == crate::sections::Teacher::Rows);
        if stored && data.examples.iter().all(|e| e.scores.is_empty()) {
            return Err(Error::config_with_hint(
                "A teacher of `rows` is asked for, but no training row has `scores`",
                "use `teacher: lexical`, or give rows with `docs` and `scores`",
            ));
        }
        let per_step = section.batch_queries * section.accumulation;
        let steps = section.steps.unwrap_or_else(|| {
            let epochs = section.epochs.unwrap_or(1.0);
            ((epochs * data.examples.len() as f64 / per_step as f64).ceil() as usize).max(1)
        });
        let w = &config.warm_start;
        let target = section.losses.flops.target;
        let controller = target.map(|t| {
            Controller::new(t.value(), t.start_weight, t.response_steps.unwrap_or_else(|| default_response(steps)))
        });
        Ok(Self {
            query_side: QuerySide::new(config, data)?,
            probed: if controller.is_some() { probe::pool(data) } else { Vec::new() },
            rise: None,
            controller,
            frequencies: DocumentFrequencies::default(),
            query_shares: target.and_then(|t| t.flops).map(|_| probe::query_shares(data, zeroed.len())),
            section,
            data,
            objective: Objective {
                losses: l,
                queries: &data.queries,
                targets: LexicalTargets::new(&data.documents, w, zeroed),
                lexical: LexicalTerm { other_weight: w.other_weight, slope_below_zero: w.slope_below_zero },
                late: (section.late_cache > 0).then(|| LateCache::new(section.late_cache)),
            },
            mixer: Mixer::new(&data.sets, config.data.mixing, section.batch_queries, config.run.seed),
            steps,
            seed: config.run.seed,
            ensemble: &config.teachers,
            teachers: None,
        })
    }

    /// With the ensemble that the losses ask.
    #[must_use]
    pub fn with_teachers(mut self, teachers: Option<Teachers>) -> Self {
        self.teachers = teachers;
        self
    }

    /// What the losses ask the teachers about a batch.
    fn request(&self, batch: &Batch) -> Request<'a> {
        training::request(self.data, &self.section.losses, batch)
    }

    /// The ensemble's scores of a batch; rank 0's on all ranks.
    fn ask(&mut self, batch: &Batch, team: &Team) -> Result<Option<TeacherScores>> {
        if self.section.losses.asks_ensemble().is_none() {
            return Ok(None);
        }
        let request = self.teachers.is_some().then(|| self.request(batch));
        let mut scores = match (&mut self.teachers, request) {
            (Some(teachers), Some(request)) => teachers.scores(&request)?,
            _ if team.leads() => return Err(Error::config("the teachers of `teachers.members` were not opened")),
            _ => TeacherScores::unknown(self.ensemble, batch.queries.len(), batch.documents.len()),
        };
        for (_, values) in &mut scores.teachers {
            team.tell_values(values)?;
        }
        Ok(Some(scores))
    }

    /// The `place`-th batch of the run.
    pub fn batch(&mut self, place: usize) -> Batch {
        let TrainSection { negatives, negative_order, short_rows, queries_per_document, .. } = *self.section;
        let draw = Draw { negatives, order: negative_order, short_rows, queries_per_document, seed: self.seed };
        Batch::drawn(self.data, &self.mixer.take(place), &draw)
    }
}

impl Contrastive<'_> {
    /// Weights of FLOPS and L1 at a step.
    fn pressures(&self, step: usize) -> (f64, f64) {
        let (f, l1) = (&self.section.losses.flops, &self.section.losses.l1);
        let fixed = || f.peak() * f.ramp.factor(step, f.ramp_steps);
        (
            self.controller.as_ref().map_or_else(fixed, Controller::weight),
            l1.weight * l1.ramp.factor(step, l1.ramp_steps),
        )
    }

    /// Counts a batch's active tokens where DF-FLOPS asks for them; the factor of each token.
    fn factors(&mut self, weights: &[f32], vocab: usize) -> Option<Vec<f32>> {
        let flops = &self.section.losses.flops;
        (flops.form == FlopsForm::Df).then(|| {
            let df = flops.df.clone().unwrap_or_default();
            self.frequencies.add(weights, vocab, df.memory);
            self.frequencies.factors(df.alpha, df.beta)
        })
    }

    /// Value and slopes of a batch's vectors at a step, of which the batch is a share.
    fn slopes(
        &mut self,
        batch: &Batch,
        queries: Option<&[SparseVector]>,
        teachers: Option<&TeacherScores>,
        weights: &[f32],
        vocab: usize,
        (step, share): (usize, f64),
    ) -> Slopes {
        let factors = self.factors(weights, vocab);
        let (flops, l1) = self.pressures(step);
        let on_queries = self.query_side.as_ref().map(|side| side.pressure(step)).unwrap_or_default();
        let pressure = Pressure { flops, l1, factors: factors.as_deref(), queries, on_queries, teachers };
        let mut slopes = self.objective.evaluate(batch, weights, vocab, pressure, share);
        if let Some(late) = &mut self.objective.late
            && slopes.outcome.loss.is_finite()
        {
            late.push(batch, weights, vocab);
        }
        slopes.outcome.matches = self.query_shares.as_ref().map_or(0.0, |shares| probe::matches(weights, shares));
        slopes
    }

    /// Asks the teachers about all batches from one on, group by group.
    fn prepare_batches(
        &mut self,
        teachers: &mut Teachers,
        from: usize,
        cancel: &Cancel,
        progress: &dyn Progress,
    ) -> Result<()> {
        let end = self.steps * self.section.accumulation;
        let task = progress.start("Asking teachers", end.saturating_sub(from) as u64);
        let (mut place, mut computed) = (from, 0);
        while place < end {
            cancel.check()?;
            let (first, mut pairs, mut requests) = (place, 0, Vec::new());
            while place < end && pairs < GROUP_PAIRS {
                let batch = self.batch(place);
                let request = self.request(&batch);
                pairs += request.wanted.iter().map(Vec::len).sum::<usize>();
                requests.push(request);
                place += 1;
            }
            teachers.prepare(&requests, cancel, &mut |more| {
                computed += more;
                task.message(&format!("{computed} computed"));
            })?;
            task.advance((place - first) as u64);
        }
        teachers.unload();
        Ok(())
    }

    /// After a step: what the batches and, now and then, some documents of the corpus show moves the weight.
    fn steer(&mut self, network: &Network, parameters: &Parameters, step: usize, out: &mut StepOutcome) -> Result<()> {
        let Some(controller) = &mut self.controller else { return Ok(()) };
        let shares = self.query_shares.as_deref();
        let documents = &self.data.documents;
        let (mut corpus, mut raised) = (None, None);
        let over_target = controller.measured().map(|m| m / controller.target());
        if step.is_multiple_of(PROBE_EVERY) {
            let drawn = probe::draw(&self.probed, self.seed, step);
            let lengths: Vec<usize> = drawn.iter().map(|&d| documents.tokens(d).len()).collect();
            let own = &drawn[network.team.share(&lengths)];
            let weights = if let Some(over_target) = over_target.filter(|&o| is_wanted(o, out.slopes)) {
                let mut own_logits = Vec::with_capacity(own.len() * network.vocab);
                for chunk in own.chunks(probe::BATCH) {
                    own_logits.extend(network.logits(parameters, documents, chunk)?);
                }
                let logits = network.team.gather_rows(&own_logits, network.vocab)?;
                raised = lift(&logits, &network.zeroed, shares, over_target);
                network.activate(&logits)
            } else {
                let own = probe::encode(network, parameters, documents, own)?;
                network.team.gather_rows(&own, network.vocab)?.into_owned()
            };
            corpus = Some(probe::density(&probe::seen(&weights, network.vocab, shares), shares));
        }
        controller.observe(probe::density(out, shares), corpus, is_weak(out.slopes));
        let measured = controller.measured().unwrap_or_default();
        if let Some(lift) = raised {
            controller.expect(lift.gain);
        }
        self.rise = raised.map(|l| l.rise);
        out.steering = Some(Steering { target: controller.target(), measured, corpus, rise: self.rise });
        Ok(())
    }
}

impl Stage for Contrastive<'_> {
    fn name(&self) -> &'static str {
        "contrastive"
    }

    fn steps(&self) -> usize {
        self.steps
    }

    fn learning_rate(&self) -> &LearningRate {
        &self.section.learning_rate
    }

    fn schedule(&self) -> (usize, Decay) {
        (self.section.warmup_steps, self.section.decay)
    }

    fn is_evaluated(&self) -> bool {
        true
    }

    fn accumulate(
        &mut self,
        network: &Network,
        parameters: &Parameters,
        step: usize,
        gradient: &mut [f32],
    ) -> Result<StepOutcome> {
        let batches = self.section.accumulation;
        let share = 1.0 / batches as f64;
        let (vocab, data) = (network.vocab, self.data);
        let documents = &data.documents;
        let mut outcome = StepOutcome::default();
        for part in 0..batches {
            let place = step * batches + part;
            let batch = self.batch(place);
            let dropout = dropout_of(self.section.dropout, self.seed, place);
            let lengths: Vec<usize> = batch.documents.iter().map(|&d| documents.tokens(d).len()).collect();
            // Of several processes each encodes its share, and all see the whole batch.
            let own = network.team.share(&lengths);
            let numbers = &batch.documents[own.clone()];
            let parts = parts(documents, numbers, self.section.micro_batch, self.section.segment_budget);
            let side = self.query_side.as_ref();
            let queries = side.map(|side| side.encode(network, parameters, data, &batch, dropout)).transpose()?;
            let vectors = queries.as_ref().map(|q| q.vectors.as_slice());
            let teachers = self.ask(&batch, &network.team)?;
            let mut slopes;
            if parts.len() == 1 {
                let encoded = network.encode(parameters, documents, numbers, dropout, true)?;
                let weights = network.team.gather_rows(&encoded.weights, vocab)?;
                slopes = self.slopes(&batch, vectors, teachers.as_ref(), &weights, vocab, (step, share));
                drop(weights);
                if slopes.outcome.loss.is_finite() {
                    let range = own.start * vocab..own.end * vocab;
                    let below = slopes.below.as_ref().map(|b| &b[range.clone()]);
                    let is_whole = range.len() == slopes.weights.len();
                    let rows = if is_whole { slopes.weights } else { slopes.weights[range.clone()].to_vec() };
                    network.backward(parameters, encoded, rows, below, gradient)?;
                }
            } else {
                let mut weights = Vec::with_capacity(numbers.len() * vocab);
                for chunk in &parts {
                    weights.extend(network.encode(parameters, documents, chunk, dropout, false)?.weights);
                }
                let all = network.team.gather_rows(&weights, vocab)?;
                slopes = self.slopes(&batch, vectors, teachers.as_ref(), &all, vocab, (step, share));
                drop(all);
                drop(weights);
                let mut first = own.start;
                for chunk in parts {
                    if !slopes.outcome.loss.is_finite() {
                        break;
                    }
                    // The same keys give the same dropout masks as before.
                    let encoded = network.encode(parameters, documents, chunk, dropout, true)?;
                    let range = first * vocab..(first + chunk.len()) * vocab;
                    first += chunk.len();
                    let below = slopes.below.as_ref().map(|b| &b[range.clone()]);
                    let rows = slopes.weights[range.clone()].to_vec();
                    network.backward(parameters, encoded, rows, below, gradient)?;
                }
            }
            // Of several processes all have every query, and one adds their gradient.
            if let (Some(side), Some(queries), Some(at)) = (&self.query_side, queries, slopes.queries.take())
                && slopes.outcome.loss.is_finite()
                && network.team.rank() == 0
            {
                side.backward(network, parameters, data, &batch, (queries, at), gradient)?;
            }
            slopes.outcome.tokens = lengths.iter().sum();
            outcome.add(&slopes.outcome, share);
        }
        if outcome.loss.is_finite() {
            self.steer(network, parameters, step, &mut outcome)?;
        }
        Ok(outcome)
    }

    fn over_target(&self, network: &Network, parameters: &Parameters) -> Result<Option<f64>> {
        let Some(controller) = &self.controller else { return Ok(None) };
        let shares = self.query_shares.as_deref();
        let documents = &self.data.documents;
        let measured = if let Some(measured) = controller.measured() {
            measured
        } else {
            let drawn = probe::draw(&self.probed, self.seed, 0);
            let weights = probe::encode(network, parameters, documents, &drawn)?;
            probe::density(&probe::seen(&weights, network.vocab, shares), shares)
        };
        Ok(Some(measured / controller.target()))
    }

    fn after_step(&mut self, parameters: &mut Parameters) -> Result<()> {
        if let Some(rise) = self.rise.take() {
            parameters.get_mut("cls.predictions.bias")?.iter_mut().for_each(|b| *b += rise);
        }
        Ok(())
    }

    fn memory(&self) -> StageMemory {
        let df = self.section.losses.flops.form == FlopsForm::Df;
        StageMemory {
            controller: self.controller.as_ref().map(Controller::state),
            frequencies: df.then(|| self.frequencies.clone()),
            late_cache: self.objective.late.clone(),
            ..StageMemory::default()
        }
    }

    fn recall(&mut self, memory: StageMemory) {
        if let (Some(controller), Some(state)) = (&mut self.controller, memory.controller) {
            controller.restore(state);
        }
        self.frequencies = memory.frequencies.unwrap_or_default();
        if let (Some(late), Some(held)) = (&mut self.objective.late, memory.late_cache) {
            *late = held;
        }
    }

    fn prepare(&mut self, from: usize, cancel: &Cancel, progress: &dyn Progress) -> Result<()> {
        let Some(mut teachers) = self.teachers.take() else { return Ok(()) };
        let done = self.prepare_batches(&mut teachers, from * self.section.accumulation, cancel, progress);
        self.teachers = Some(teachers);
        done
    }

    fn teacher_estimates(&mut self, cancel: &Cancel) -> Result<Vec<TeacherEstimate>> {
        let Some(mut teachers) = self.teachers.take() else { return Ok(Vec::new()) };
        let batches = 0..self.steps * self.section.accumulation;
        let requests = batches.map(|place| {
            let batch = self.batch(place);
            self.request(&batch)
        });
        let estimates = teachers.estimate(requests, cancel);
        self.teachers = Some(teachers);
        estimates
    }

    fn teacher_work(&self) -> Vec<TeacherWork> {
        self.teachers.as_ref().map_or_else(Vec::new, Teachers::work)
    }
}
