//! What `pmset` and `ioreg` of macOS print, read without a Mac at hand: the forms are those of
//! `man pmset` and of macOS 13 to 26.

use pomona_common::conditions::Supply;

/// `pmset -g batt`: what feeds the machine, and the charge of its battery in percent.
pub(crate) fn battery(text: &str) -> (Option<Supply>, Option<f32>) {
    let supply = match text.lines().next().unwrap_or_default() {
        line if line.contains("'AC Power'") => Some(Supply::Mains),
        line if line.contains("'Battery Power'") => Some(Supply::Battery),
        _ => None,
    };
    let charge = text
        .lines()
        .filter(|line| line.contains("InternalBattery"))
        .flat_map(str::split_whitespace)
        .find_map(|word| word.strip_suffix("%;")?.parse().ok());
    (supply, charge)
}

/// `pmset -g`: whether the machine saves power.
pub(crate) fn low_power(text: &str) -> Option<bool> {
    let mut lines = text.lines().map(str::split_whitespace);
    lines.find_map(|mut words| match (words.next(), words.next()) {
        (Some("lowpowermode"), Some(value)) => Some(value == "1"),
        _ => None,
    })
}

/// `pmset -g assertions`: whether something holds an audio input.
pub(crate) fn microphone(text: &str) -> Option<bool> {
    (!text.is_empty()).then(|| text.contains("audio-in"))
}

/// `ioreg -r -k FrontCameraStreaming`: whether the built-in camera is on. The driver's class has another
/// name on each generation of chips, its properties do not. Nothing on a Mac without such a camera.
pub(crate) fn camera(text: &str) -> Option<bool> {
    let is_its = |line: &&str| {
        ["\"FrontCameraStreaming\"", "\"FrontCameraActive\""]
            .iter()
            .any(|key| line.contains(key))
    };
    let mut values = text.lines().filter(is_its).peekable();
    values.peek()?;
    Some(values.any(|line| line.trim_end().ends_with("= Yes")))
}

/// Whether a microphone or a camera is in use. That none is takes knowing it of both; a camera on a cable
/// is known only while it works.
pub(crate) fn capture(microphone: Option<bool>, camera: Option<bool>, cable: bool) -> Option<bool> {
    if cable || microphone == Some(true) || camera == Some(true) {
        return Some(true);
    }
    microphone.and(camera)
}

/// `ioreg -c IOHIDSystem -d 4`: seconds since the last input.
pub(crate) fn idle_s(text: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.contains("\"HIDIdleTime\""))?;
    let nanoseconds: u64 = line.rsplit('=').next()?.trim().parse().ok()?;
    Some(nanoseconds / 1_000_000_000)
}

/// `ioreg -n Root -d 1`: whether the screen of the person at the console is locked.
pub(crate) fn locked(text: &str) -> Option<bool> {
    let users = text.lines().find(|line| line.contains("\"IOConsoleUsers\""))?;
    Some(users.contains("\"CGSSessionScreenIsLocked\"=Yes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_tools_print_is_understood() {
        let on_battery = "Now drawing from 'Battery Power'\n -InternalBattery-0 (id=1234)\t87%; discharging; 4:12 remaining present: true\n";
        assert_eq!(battery(on_battery), (Some(Supply::Battery), Some(87.0)));
        assert_eq!(
            battery("Now drawing from 'AC Power'\n"),
            (Some(Supply::Mains), None)
        );
        assert_eq!(battery(""), (None, None));
        assert_eq!(
            low_power(" womp                 1\n lowpowermode         1\n"),
            Some(true)
        );
        assert_eq!(low_power(" lowpowermode         0\n"), Some(false));
        assert_eq!(low_power(" womp 1\n"), None);
        assert_eq!(idle_s("    | |   \"HIDIdleTime\" = 12345678901\n"), Some(12));
        let root =
            |more: &str| format!("  \"IOConsoleUsers\" = ({{\"kCGSSessionOnConsoleKey\"=Yes{more}}})\n");
        assert_eq!(locked(&root(",\"CGSSessionScreenIsLocked\"=Yes")), Some(true));
        assert_eq!(locked(&root("")), Some(false));
        assert_eq!(locked(""), None);
    }

    #[test]
    fn a_camera_alone_is_capture_too() {
        let heard = microphone("Resources: audio-in BuiltInMicrophoneDevice");
        let silent = microphone("Resources: audio-out BuiltInSpeakerDevice");
        assert_eq!((heard, silent, microphone("")), (Some(true), Some(false), None));
        let built_in = |active: &str, streaming: &str| {
            camera(&format!(
                "+-o AppleH16CamIn  <class AppleH16CamIn, id 0x1000003a1, registered, matched, active>\n    {{\n      \"FrontCameraActive\" = {active}\n      \"FrontCameraStreaming\" = {streaming}\n      \"SensorType\" = Yes\n    }}\n"
            ))
        };
        let (off, on) = (built_in("No", "No"), built_in("No", "Yes"));
        assert_eq!(
            (off, on, built_in("Yes", "No")),
            (Some(false), Some(true), Some(true))
        );
        assert_eq!(camera(""), None);

        assert_eq!(capture(silent, on, false), Some(true));
        assert_eq!(capture(heard, off, false), Some(true));
        assert_eq!(capture(silent, off, false), Some(false));
        assert_eq!(capture(silent, None, true), Some(true));
        assert_eq!(capture(silent, None, false), None);
        assert_eq!(capture(None, off, false), None);
    }
}
