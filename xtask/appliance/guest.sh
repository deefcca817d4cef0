#!/bin/sh
# The life of a package on an appliance. Runs as root in the guest of `cargo xtask appliance-test`, with the payload disk
# in the working directory: an older and a newer package, and the README's commands for a newcomer
# (newcomer.txt). Each step says what it did and how long it took.
set -eu

NODE=appliance
BASE=phi-edge/v1/$NODE
DROP=/run/appliance
mkdir -p $DROP

now() { cut -d ' ' -f 1 /proc/uptime; }
began=$(now)
step() {
    ended=$(now)
    echo "$1" "$began" "$ended" | awk -v what="$2" '{ printf "STEP %-10s %6.1f s  %s\n", $1, $3 - $2, what }'
    began=$(now)
}
fail() {
    echo "FAILED $*"
    journalctl -b -u phi-edge -n 60 --no-pager -o short-monotonic || true
    systemctl status phi-edge mosquitto --no-pager || true
    exit 1
}
show() { systemctl show phi-edge -p "$1" --value; }
# Waits, COUNT tenths of a second at most, until a command succeeds.
eventually() {
    count=$1
    shift
    while ! "$@" >/dev/null 2>&1; do
        count=$((count - 1))
        [ "$count" -gt 0 ] || return 1
        sleep 0.1
    done
}
active() { [ "$(show ActiveState)" = active ]; }
restarted() { active && [ "$(show NRestarts)" -ge "$1" ]; }
# The broker asks for a user and a password.
as_client() {
    tool=$1
    shift
    "$tool" -h 127.0.0.1 -u client -P client "$@"
}
ask() {
    as_client mosquitto_rr -V 5 -W 120 -t $BASE/request -e "$BASE/response/$1" -m "$2"
}
# Sends the request ID and lets a client listen for what comes of it.
send() {
    as_client mosquitto_sub -t "$BASE/response/$1" -F '%p' >"$DROP/$1" &
    sleep 1
    as_client mosquitto_pub -q 1 -t $BASE/request \
        -m "{\"id\":\"$1\",\"prompt\":\"$2\",\"max_tokens\":$3,\"stream\":true}"
}
has_chunk() { grep -q '"delta"' "$DROP/$1"; }
has_outcome() { grep -q '"reply_id"' "$DROP/$1"; }
answered() { grep -q '"finish_reason"' "$DROP/$1"; }
outcomes() { grep '"reply_id"' "$DROP/$1" | sort -u | wc -l; }

# No user is here to be asked.
export DEBIAN_FRONTEND=noninteractive
# No network either: ca-certificates, which only `pull` wants, can't be fetched.
printf 'APT::Install-Recommends "false";\nAPT::Get::Assume-Yes "true";\n' >/etc/apt/apt.conf.d/90guest
install() { apt-get install -y -q "$1" >$DROP/apt 2>&1 || { cat $DROP/apt; fail "apt-get install $1"; }; }

echo "GUEST Debian $(cat /etc/debian_version), $(uname -r), $(systemctl --version | head -n 1)"
# Command N of the README, and those after it if M says up to which.
newcomer() { sed -n "$1,${2:-$1}p" newcomer.txt >$DROP/commands && timeout 600 sh -e $DROP/commands >$DROP/said 2>&1 || { cat $DROP/said; fail "README: $(cat $DROP/commands)"; }; }

newcomer 1
getent passwd phi-edge >/dev/null || fail "no user phi-edge"
active && fail "the installation starts the service"
grep -q '^\[mqtt\]' /etc/phi-edge/config.toml || fail "no configuration"
[ -d /etc/phi-edge/conf.d ] || fail "no conf.d"
[ "$(stat -c %U:%a /var/lib/phi-edge)" = phi-edge:750 ] || fail "/var/lib/phi-edge is not the daemon's"
step install "$(dpkg-query -W -f '${Package} ${Version}, ${Installed-Size} KiB' phi-edge)"

# Without a model: the check says so, the unit fails with 78 and stays down.
! systemctl start phi-edge 2>/dev/null || fail "starts without a model"
sleep 7
[ "$(show ExecMainStatus)" = 78 ] || fail "status $(show ExecMainStatus) instead of 78"
[ "$(show NRestarts)" = 0 ] || fail "restarts without a model"
[ "$(show ActiveState)" = failed ] || fail "$(show ActiveState) without a model"
journalctl -u phi-edge --no-pager | grep -q 'fault  model' || fail "the journal does not say what is wrong"
step no-model "exit status 78, not restarted; the journal names the fault"

newcomer 2 '$'
grep -q '"text":"[^"]' $DROP/said || { cat $DROP/said; fail "no answer for a newcomer"; }
step newcomer "the README's $(wc -l <newcomer.txt) commands, an answer: $(sed 's/.*"text":"\([^"]*\)".*/\1/' $DROP/said | tail -n 1 | cut -c 1-50)…"
systemctl disable -q --now phi-edge
rm /etc/phi-edge/conf.d/model.toml

mosquitto_passwd -c -b /etc/mosquitto/passwords phi-edge 'correct horse'
mosquitto_passwd -b /etc/mosquitto/passwords client client
chown mosquitto: /etc/mosquitto/passwords
cat >/etc/mosquitto/conf.d/appliance.conf <<'CONF'
listener 1883 127.0.0.1
allow_anonymous false
password_file /etc/mosquitto/passwords
set_tcp_nodelay true
autosave_on_changes true
autosave_interval 1
max_queued_messages 0
CONF
systemctl restart mosquitto || fail "the broker does not start"
step broker "mosquitto with passwords"

phi-edge models export --from /usr/share/phi-edge/demo-model $DROP/demo.tar >/dev/null || fail "models export"
runuser -u phi-edge -- phi-edge models import $DROP/demo.tar --use >$DROP/said 2>&1 || { cat $DROP/said; fail "models import"; }
printf '[node]\nname = "%s"\n[mqtt]\nhost = "127.0.0.1"\nusername = "phi-edge"\npassword_file = "credential:mqtt.password"\n' $NODE \
    >/etc/phi-edge/conf.d/appliance.toml
(umask 077 && echo 'correct horse' >/etc/credstore/phi-edge.mqtt.password)
step import "the demonstration model, from one file"

systemctl enable -q phi-edge
systemctl start phi-edge || fail "does not start"
step start "$(show StatusText); $(($(show MemoryCurrent) / 1048576)) MiB"

answer=$(ask 1 'How do I reset the device?')
[ -n "$answer" ] || fail "no answer"
step ask "$(echo "$answer" | sed 's/.*"text":"\([^"]*\)".*/\1/' | cut -c 1-70)…"

echo "INFO  $(systemd-analyze security phi-edge --no-pager | tail -n 1)"
began=$(now)

pid=$(show MainPID)
cat >/etc/phi-edge/rules.d/alarms.toml <<'RULE'
topics = ["plant/+/alarm"]
facts_only = true
RULE
systemctl reload phi-edge || fail "reload"
sleep 1
active || fail "a reload ends the service"
[ "$(show MainPID)" = "$pid" ] || fail "a reload ends the process"
[ -n "$(ask 2 'Which alarms are there?')" ] || fail "no answer after the reload"
step reload "same process, answers"

send killed 'Tell me a long story.' 1200
eventually 600 has_chunk killed || fail "no chunk"
has_outcome killed && fail "answered too soon for this step"
kill -9 "$pid"
eventually 900 restarted 1 || fail "not restarted"
eventually 1800 answered killed || fail "what was accepted is not answered"
[ "$(outcomes killed)" = 1 ] || fail "$(outcomes killed) outcomes"
step kill-9 "restarted, the accepted request answered once"

# The processes' own clock stands still: nothing but the watchdog notices.
kill -STOP "$(show MainPID)"
as_client mosquitto_sub -t $BASE/response/hung -F '%p' >$DROP/hung &
sleep 1
as_client mosquitto_pub -q 1 -t $BASE/request -m '{"id":"hung","prompt":"Hello","max_tokens":8}'
eventually 3000 restarted 2 || fail "the watchdog does not restart it"
eventually 900 answered hung || fail "no answer after the hang"
journalctl -b -u phi-edge --no-pager | grep -q 'Watchdog timeout' || fail "it was not the watchdog"
journalctl -b -u phi-edge --no-pager | grep -q 'the process before this one crashed' || fail "the hang is not noted as a crash"
step hang "ended by the watchdog, restarted, the crash noted, the waiting request answered"

echo '# Changed by the operator.' >>/etc/phi-edge/config.toml
send upgraded 'Tell me a long story.' 600
eventually 600 has_chunk upgraded || fail "no chunk"
install ./new.deb
active || fail "not active after the upgrade"
[ "$(dpkg-query -W -f '${Version}' phi-edge)" = "$(dpkg-deb -f new.deb Version)" ] || fail "version"
[ "$(show MainPID)" != "$pid" ] || fail "the old process runs on"
eventually 1800 answered upgraded || fail "no answer after the upgrade"
[ "$(outcomes upgraded)" = 1 ] || fail "$(outcomes upgraded) outcomes"
grep -q 'Changed by the operator' /etc/phi-edge/config.toml || fail "the configuration was overwritten"
step upgrade "to $(dpkg-query -W -f '${Version}' phi-edge); the running answer came once, configuration kept"

# State was kept: a repeat of a request from before the upgrade gets the stored outcome, to the byte.
as_client mosquitto_sub -t $BASE/response/killed -F '%p' >$DROP/again &
sleep 1
as_client mosquitto_pub -q 1 -t $BASE/request \
    -m '{"id":"killed","prompt":"Tell me a long story.","max_tokens":1200,"stream":true}'
eventually 300 answered again || fail "no stored outcome"
[ "$(grep '"reply_id"' $DROP/again)" = "$(grep '"reply_id"' $DROP/killed | head -n 1)" ] || fail "another outcome"
step state "an outcome from before the upgrade, byte for byte"

apt-get remove -y -q phi-edge >/dev/null 2>&1 || fail "remove"
active && fail "runs on after remove"
[ -f /etc/phi-edge/config.toml ] || fail "remove took the configuration"
[ -d /var/lib/phi-edge/store ] || fail "remove took the state"
step remove "stopped; configuration and state kept"

apt-get purge -y -q phi-edge >/dev/null 2>&1 || fail "purge"
for left in /etc/phi-edge /var/lib/phi-edge /var/log/phi-edge /usr/lib/phi-edge /usr/share/phi-edge /usr/bin/phi-edge; do
    [ ! -e "$left" ] || fail "$left is left after purge"
done
! systemctl list-unit-files --no-pager | grep -q phi-edge || fail "the unit is left after purge"
step purge "nothing is left"
echo DONE
