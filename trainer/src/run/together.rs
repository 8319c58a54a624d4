//! A run in several processes: what rank 0 tells the others, and what those do.

use nsparse_encoder::Parameters;
use serde::{Deserialize, Serialize};

use super::{Hooks, build_network, load_model, stages};
use crate::checkpoint::State;
use crate::config::TrainConfig;
use crate::data::TrainingData;
use crate::optimizer::{AdamW, rate_factor};
use crate::parallel::Team;
use crate::query_side::QuerySide;
use crate::query_side::table::is_query;
use crate::stage::{Stage, take_step};
use crate::{Error, Result};

/// The optimizer's first and second moments, and its steps.
pub(super) type Moments = (Vec<f32>, Vec<f32>, u64);

/// What rank 0 decides before each step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Order {
    /// One more.
    Step,
    /// The stage is done.
    NextStage,
    /// The run ends here.
    Stop,
}

/// The other ranks' part of [`train_together`](super::train_together): the recipe, the state and the parameters come
/// from rank 0; data and model are read from the same files. Nothing is written. Ends when rank 0's run does.
///
/// # Errors
/// If the data cannot be read or are not rank 0's, the device fails, or rank 0 is gone.
pub fn follow(team: Team, hooks: &Hooks<'_>) -> Result<()> {
    let mut config = TrainConfig::parse(&team.tell(String::new())?, &[])?;
    if config.run.device == "cuda" {
        config.run.device = format!("cuda:{}", team.rank());
    }
    let config = config;
    let (mut model, tokenizer) = load_model(&config)?;
    let mut data = TrainingData::load(&config, &tokenizer, hooks.cancel, hooks.progress)?;
    // Rank 0 asks the teachers.
    data.texts = Vec::new();
    let mut network = build_network(&config, &model, &tokenizer)?;
    network.team = team;
    network.team.require_same("the data", &data.fingerprint)?;
    let zeroed = network.zeroed.clone();
    let mut stages = stages(&config, &data, &zeroed, None)?;
    let query_side = QuerySide::new(&config, &data)?;
    if let Some(side) = &query_side {
        side.extend(&mut model)?;
    }
    let (mut state, mut moments) = begin(&network.team, State::default(), &mut model.parameters, None)?;
    let mut gradient = vec![0.0f32; model.parameters.len()];
    while let Some(stage) = stages.get_mut(state.stage) {
        let (total, (warmup, decay)) = (stage.steps(), stage.schedule());
        let mut optimizer = optimizer(&config, stage.as_ref(), &model.parameters, moments.take())?;
        stage.recall(std::mem::take(&mut state.memory));
        if let Some(side) = query_side.as_ref().filter(|_| stage.is_evaluated() && state.step == 0) {
            side.begin(&mut model.parameters, data.query_encoder.idf(), config.run.seed)?;
            network.team.tell_values(model.parameters.data_mut())?;
        }
        loop {
            match network.team.tell(Order::Stop)? {
                Order::Step => {}
                Order::NextStage => break,
                Order::Stop => return Ok(()),
            }
            let (step, parameters) = (state.step, &mut model.parameters);
            let factor = rate_factor(step, warmup, total, decay);
            take_step(stage.as_mut(), &network, parameters, &mut optimizer, &mut gradient, step, factor)?;
            state.step += 1;
        }
        require_same_parameters(&network.team, &model.parameters)?;
        state.stage += 1;
        state.step = 0;
    }
    Ok(())
}

/// State, parameters and moments as rank 0 has them.
pub(super) fn begin(
    team: &Team,
    state: State,
    parameters: &mut Parameters,
    moments: Option<Moments>,
) -> Result<(State, Option<Moments>)> {
    if team.size() == 1 {
        return Ok((state, moments));
    }
    let state = team.tell(state)?;
    team.tell_values(parameters.data_mut())?;
    let steps = team.tell(moments.as_ref().map(|m| m.2))?;
    let Some(steps) = steps else { return Ok((state, None)) };
    let zeros = || vec![0.0; parameters.len()];
    let (mut first, mut second, _) = moments.unwrap_or_else(|| (zeros(), zeros(), steps));
    team.tell_values(&mut first)?;
    team.tell_values(&mut second)?;
    Ok((state, Some((first, second, steps))))
}

/// A stage's optimizer, with its moments in a run that goes on.
pub(super) fn optimizer(
    config: &TrainConfig,
    stage: &dyn Stage,
    parameters: &Parameters,
    moments: Option<Moments>,
) -> Result<AdamW> {
    let rates = stage.learning_rate();
    let mut optimizer = AdamW::new(parameters.specs(), &config.optimizer, |spec| match spec {
        spec if is_query(spec) => config.query.rate(),
        spec if spec.name.starts_with("cls.") => rates.head,
        _ => rates.encoder,
    });
    if let Some((first, second, steps)) = moments {
        optimizer.restore(first, second, steps).ok_or_else(|| Error::config("the moments do not fit the model"))?;
    }
    Ok(optimizer)
}

/// Every rank made the same steps: checked where a stage ends.
pub(super) fn require_same_parameters(team: &Team, parameters: &Parameters) -> Result<()> {
    if team.size() == 1 {
        return Ok(());
    }
    // FNV-1a over the values' bits.
    let mix = |hash: u64, v: &f32| (hash ^ u64::from(v.to_bits())).wrapping_mul(0x0100_0000_01b3);
    let hash = parameters.data().iter().fold(0xcbf2_9ce4_8422_2325, mix);
    team.require_same("the model after the stage", &format!("{hash:016x}"))
}
