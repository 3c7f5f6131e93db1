#!/bin/busybox sh
# Mounts the KPI file system, and starts the application that writes to it and its visitors.
# Without a port, FUSE or the disk's third partition there is none of it, and the guest counts.

# Nobody makes links for ports here, as udev does elsewhere.
port=
tries=0
while [ -z "$port" ] && [ $tries -lt 5 ]; do
  for name in /sys/class/virtio-ports/*/name; do
    if [ "$(cat "$name" 2>/dev/null)" = sojourn.kpi ]; then
      name=${name%/name}
      port=/dev/virtio-ports/sojourn.kpi
      mkdir -p /dev/virtio-ports
      ln -sf "/dev/${name##*/}" $port
    fi
  done
  tries=$((tries + 1))
  [ -z "$port" ] && sleep 1
done
[ -z "$port" ] && exit

for module in /modules/kpi/*.ko; do insmod "$module"; done
# On a disk, so that rows survive a move in which the guest is shut down.
if ! mount -t ext4 -o noatime /dev/vda3 /data; then
  echo "sojourn-guest has no place for KPIs"
  exit
fi
kpi-fs mount /kpi --database /data/kpi.db --quota 1M --rows 2M --port $port >/run/kpi-fs &
tries=0
while ! grep -qs mounted /run/kpi-fs; do
  tries=$((tries + 1))
  if [ $tries -gt 60 ]; then
    echo "sojourn-guest has no KPI file system"
    exit
  fi
  sleep 1
done

ifconfig lo 127.0.0.1
: >/run/sessions
echo 0 0 >/run/served
httpd -h /srv -p 127.0.0.1:80
visitors &

# The application's own figures, once a second, by plain file I/O.
while :; do
  # It is empty for a moment when it is written.
  read -r opened requests </run/served || continue
  users=$(wc -l </run/sessions)
  # Whoever measures how long a row takes to where it is read begins here.
  echo "sojourn-guest writes requests=$requests"
  printf 'current_users,requests\n%d,%d\n' "$users" "$requests" >/kpi/unencrypted/web
  sleep 1
done
