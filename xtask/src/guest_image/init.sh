#!/bin/busybox sh
# The guest's process 1: it counts.
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in /modules/*.ko; do insmod "$module"; done

boot=$(cut -c1-8 /proc/sys/kernel/random/uuid)
echo "sojourn-guest booted boot=$boot"

# An event of the power button is 24 bytes; any byte of it means that it was pressed.
(
  while :; do
    for event in /sys/class/input/event*; do
      case "$(cat "$event/device/name" 2>/dev/null)" in
        "Power Button") head -c 24 "/dev/input/${event##*/}" >/dev/null && exec touch /stop ;;
      esac
    done
    sleep 1
  done
) &

disk=/dev/vda2
wait_for_disk=0
while [ ! -b $disk ] && [ $wait_for_disk -lt 20 ]; do
  wait_for_disk=$((wait_for_disk + 1))
  sleep 1
done

read_counter() {
  set -- $(dd if=$disk bs=512 count=1 iflag=direct 2>/dev/null | tr '\000' ' ')
  case "$1" in sojourn) counter=$2 ;; *) counter=0 ;; esac
}

read_counter
since=$counter
uptime=0
while [ ! -e /stop ]; do
  read_counter
  counter=$((counter + 1))
  uptime=$((uptime + 1))
  # Direct, so that the page cache, which is memory, cannot hide a disk of another moment.
  if printf 'sojourn %d \n' $counter |
    dd of=$disk bs=512 count=1 conv=sync,fsync oflag=direct 2>/dev/null; then
    echo "sojourn-guest counter=$counter uptime=$uptime boot=$boot since=$since"
  else
    echo "sojourn-guest cannot write $disk"
  fi
  echo $counter >/run/counter
  # What else there is comes after the first count, so that it does not make the boot longer.
  if [ $uptime = 1 ]; then
    # A card has an address of its link alone, which comes from its MAC address.
    if [ -e /sys/class/net/eth0 ]; then ip link set eth0 up; fi
    kpi &
  fi
  sleep 1
done
echo "sojourn-guest powering off"
sync
poweroff -f
