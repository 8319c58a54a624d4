//! What wins over what, and what contradicts what.

#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use std::os::unix::fs::PermissionsExt as _;

use super::*;
use crate::failure::Failure;

/// A folder with a profile file, and an environment.
struct World {
    folder: tempfile::TempDir,
    env: Vec<(&'static str, String)>,
    typed_at_prompt: Option<&'static str>,
}

impl World {
    fn new(profiles: &str, env: &[(&'static str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("profiles.yaml");
        std::fs::write(&path, profiles).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        let mut env: Vec<_> = env.iter().map(|(n, v)| (*n, (*v).to_owned())).collect();
        env.push(("NSPARSE_PROFILES", path.display().to_string()));
        Self { folder, env, typed_at_prompt: None }
    }

    fn file(&self, name: &str, text: &str) -> std::path::PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    fn resolve(&self, args: &ClusterArgs) -> anyhow::Result<ClusterConfig> {
        let env = |name: &str| self.env.iter().find(|(n, _)| *n == name).map(|(_, v)| v.clone());
        let ask = |_: &str| self.typed_at_prompt.map(str::to_owned);
        config_in(args, || Ok("http://localhost:9200".to_owned()), &Surroundings { env: &env, ask: &ask })
    }

    fn refused(&self, args: &ClusterArgs) -> String {
        let failure = Failure::from(&self.resolve(args).unwrap_err());
        assert_eq!(failure.code, 2, "{}", failure.message);
        assert!(!failure.message.contains("hidden") && failure.hint.is_some(), "{}", failure.message);
        failure.message
    }
}

fn args() -> ClusterArgs {
    ClusterArgs::default()
}

fn user(name: &str) -> ClusterArgs {
    ClusterArgs { user: Some(name.to_owned()), ..args() }
}

fn basic(user: &str, password: &str) -> Auth {
    Auth::Basic { user: user.to_owned(), password: password.into() }
}

#[test]
fn typed_wins_over_environment_over_profile() {
    let profiles = "p: {url: 'https://p', user: pat, password: of-profile, timeout: 3, connect_timeout: 2}";
    let mut world = World::new(profiles, &[("NSPARSE_PROFILE", "p")]);
    let found = world.resolve(&args()).unwrap();
    assert_eq!((found.urls.clone(), found.auth), (vec!["https://p".into()], basic("pat", "of-profile")));
    assert_eq!((found.timeout.as_secs(), found.connect_timeout.as_secs()), (3, 2));

    world.env.push(("NSPARSE_URL", "https://e, https://f".to_owned()));
    world.env.push(("NSPARSE_PASSWORD", "of-env".to_owned()));
    let found = world.resolve(&args()).unwrap();
    assert_eq!((found.urls, found.auth), (vec!["https://e".into(), "https://f".into()], basic("pat", "of-env")));

    let file = world.file("password", "of-file\n");
    let typed =
        ClusterArgs { url: vec!["https://t".to_owned()], password_file: Some(file), timeout: Some(9), ..user("tom") };
    let found = world.resolve(&typed).unwrap();
    assert_eq!(
        (found.urls, found.auth, found.timeout.as_secs()),
        (vec!["https://t".into()], basic("tom", "of-file"), 9)
    );

    // One way that is typed replaces the other that a profile names.
    let token = ClusterArgs { bearer_token_file: Some(world.file("token", "t")), ..args() };
    assert_eq!(world.resolve(&token).unwrap().auth, Auth::Bearer("t".into()));
}

#[test]
fn time_limits_come_from_the_environment_too() {
    let profiles = "p: {timeout: 3, connect_timeout: 2}";
    let mut world = World::new(profiles, &[("NSPARSE_PROFILE", "p"), ("NSPARSE_TIMEOUT", "5")]);
    world.env.push(("NSPARSE_CONNECT_TIMEOUT", " 4 ".to_owned()));
    let limits = |args: &ClusterArgs| {
        let found = world.resolve(args).unwrap();
        (found.timeout.as_secs(), found.connect_timeout.as_secs())
    };
    assert_eq!(limits(&args()), (5, 4));
    assert_eq!(limits(&ClusterArgs { timeout: Some(9), ..args() }), (9, 4));
    for wrong in ["0", "1.5", "soon"] {
        let world = World::new("", &[("NSPARSE_TIMEOUT", wrong)]);
        assert_eq!(world.refused(&args()), format!("NSPARSE_TIMEOUT is `{wrong}`"));
    }
}

#[test]
fn nothing_set_is_this_machines_node_without_a_user() {
    let found = World::new("", &[("NSPARSE_USER", " "), ("NSPARSE_PASSWORD", "x")]).resolve(&args()).unwrap();
    assert_eq!((found.urls, found.auth), (vec!["http://localhost:9200".into()], Auth::None));
}

#[test]
fn a_password_is_asked_for_and_never_anothers() {
    let mut world = World::new("p: {user: pat, password: hidden}", &[("NSPARSE_PROFILE", "p")]);
    assert_eq!(world.refused(&user("tom")), "No password for the user `tom`");
    world.typed_at_prompt = Some("typed");
    assert_eq!(world.resolve(&user("tom")).unwrap().auth, basic("tom", "typed"));
}

#[test]
fn secrets_come_from_files_and_the_environment() {
    let mut world = World::new("", &[("NSPARSE_API_KEY", "k")]);
    assert_eq!(world.resolve(&args()).unwrap().auth, Auth::ApiKey("k".into()));
    let file = world.file("key", "of-file\r\n").display().to_string();
    world.env = vec![("NSPARSE_API_KEY_FILE", file)];
    assert_eq!(world.resolve(&args()).unwrap().auth, Auth::ApiKey("of-file".into()));
    world.env = vec![("NSPARSE_AWS", "aoss".to_owned()), ("AWS_ACCESS_KEY_ID", "AK".to_owned())];
    world.env.extend([("AWS_SECRET_ACCESS_KEY", "hidden".to_owned()), ("AWS_REGION", "eu-west-1".to_owned())]);
    match world.resolve(&args()).unwrap().auth {
        Auth::Aws(found) => assert_eq!((found.service, found.region.as_str()), (AwsService::Aoss, "eu-west-1")),
        other => panic!("{other:?}"),
    }
}

#[test]
fn wrong_combinations_have_one_clear_message() {
    let world = World::new(
        "two: {user: a, password: hidden, api_key: hidden}\ntwice: {api_key: hidden, api_key_file: x}\n",
        &[],
    );
    let file = |text: &str| Some(world.file("file", text));
    let message = |args: ClusterArgs| world.refused(&args);
    let profile = |name: &str| ClusterArgs { profile: Some(name.to_owned()), ..args() };
    assert_eq!(
        message(ClusterArgs { api_key_file: file("k"), ..user("me") }),
        "--user and --api-key-file are two ways to prove who you are, both typed"
    );
    assert_eq!(message(profile("two")), "user and api_key are two ways to prove who you are, both in the profile");
    assert_eq!(message(profile("twice")), "The profile names its API key twice: itself and a file");
    assert_eq!(message(ClusterArgs { password_file: file("p"), ..args() }), "--password-file is given, but no user");
    assert!(message(ClusterArgs { aws_region: Some("r".to_owned()), ..args() }).contains("nothing without --aws"));
    assert!(message(ClusterArgs { client_cert: file("c"), ..args() }).contains("but not its key"));
    assert!(message(ClusterArgs { client_key: file("c"), ..args() }).contains("but no certificate"));
    for (text, what) in [("", "is empty"), ("hidden\nhidden", "has several lines")] {
        assert!(message(ClusterArgs { bearer_token_file: file(text), ..args() }).ends_with(what));
    }
    let url = ClusterArgs { url: vec!["https://me:hidden@h".to_owned()], ..args() };
    assert!(message(url).starts_with("--url holds a user or password"));
    let proxy = ClusterArgs { proxy: Some("http://me:hidden@h".to_owned()), ..args() };
    assert!(message(proxy).starts_with("--proxy holds a user or password"));
    let env = World::new("", &[("NSPARSE_API_KEY", "hidden"), ("NSPARSE_BEARER_TOKEN", "hidden")]);
    assert!(env.refused(&args()).ends_with("both in the environment"));
    assert_eq!(World::new("", &[("NSPARSE_AWS", "s3")]).refused(&args()), "NSPARSE_AWS is `s3`");
}
