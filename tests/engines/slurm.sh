#!/usr/bin/env bash
# A SLURM cluster of this machine alone, for tests: two cores or more, as root, on loopback, without systemd.
#   slurm.sh install         Debian's packages, where apt-get and root are at hand; else nothing
#   slurm.sh start FOLDER [NODES]    one node with all cores, or several with one each; then: export SLURM_CONF=FOLDER/slurm.conf
#   slurm.sh stop FOLDER
set -euo pipefail
action=$1

if [ "$action" = install ]; then
  if command -v slurmctld >/dev/null || [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then exit 0; fi
  apt-get update && apt-get install -y --no-install-recommends slurm-wlm slurm-client munge
  exit 0
fi

folder=$(mkdir -p "$2" && cd "$2" && pwd)
export SLURM_CONF="$folder/slurm.conf"

if [ "$action" = stop ]; then
  scancel --me || true
  for _ in $(seq 30); do
    if [ -z "$(squeue --noheader)" ]; then break; fi
    sleep 0.5
  done
  cat "$folder"/*.pid | xargs -r kill || true
  if [ -f "$folder/munged" ]; then kill "$(cat /run/munge/munged.pid)"; fi
  exit 0
fi

host=$(hostname -s)
nodes=${3:-1}
if [ "$nodes" = 1 ]; then
  names=$host
  node="NodeName=$host NodeAddr=127.0.0.1 CPUs=$(getconf _NPROCESSORS_ONLN)"
else
  names=$(seq -f "n%g" "$nodes")
  node="NodeName=n[1-$nodes] NodeHostname=$host NodeAddr=127.0.0.1 Port=[17001-$((17000 + nodes))] CPUs=1"
fi
mkdir -p "$folder/state"
for name in $names; do mkdir -p "$folder/spool.$name"; done
# proctrack/linuxproc: without control groups the node would look idle, and no job would run. cred_expire: a job that is
# queued again waits for it. MaxArraySize: small, so that a test reaches it. gpu: SLURM only counts the files.
touch "$folder/gpu0" "$folder/gpu1"
echo "Name=gpu File=$folder/gpu[0-1]" >"$folder/gres.conf"
cat >"$SLURM_CONF" <<CONF
ClusterName=one
SlurmctldHost=$host(127.0.0.1)
ProctrackType=proctrack/linuxproc
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
AuthInfo=cred_expire=5
KillWait=5
ReturnToService=2
MailProg=/bin/true
MaxArraySize=4
GresTypes=gpu
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool.%n
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.%n.log
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.%n.pid
$node RealMemory=2000 Gres=gpu:2
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
if ! munge -n >/dev/null 2>&1; then
  install -d -o munge -g munge -m 0755 /run/munge
  runuser -u munge -- /usr/sbin/munged
  touch "$folder/munged"
fi
/usr/sbin/slurmctld
for name in $names; do /usr/sbin/slurmd -N "$name"; done
for _ in $(seq 40); do
  if [ "$(sinfo --noheader --Node --format=%T 2>/dev/null | grep -c idle)" = "$nodes" ]; then exit 0; fi
  sleep 0.5
done
echo "error: the node is not idle; see $folder/*.log" >&2
exit 1
