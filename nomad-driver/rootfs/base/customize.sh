#!/bin/sh
# Run by mmdebstrap on the finished root, whose path is $1, before it is packed. Everything here has to give the same bytes
# every time: the digest of the template depends on it.
set -eu
root=$1

chroot "$root" useradd --uid 1000 --user-group --create-home --shell /bin/bash user
printf 'user ALL=(ALL:ALL) NOPASSWD:ALL\n' >"$root/etc/sudoers.d/user"
chmod 0440 "$root/etc/sudoers.d/user"

# Programs that pip installs for the user are found by login shells and by interactive ones.
cat >"$root/etc/profile.d/soulbox.sh" <<'PROFILE'
case ":$PATH:" in
*":$HOME/.local/bin:"*) ;;
*) PATH="$HOME/.local/bin:$PATH" ;;
esac
export PATH
export LANG="${LANG:-C.UTF-8}"
PROFILE
cat >>"$root/etc/bash.bashrc" <<'BASHRC'

. /etc/profile.d/soulbox.sh
PS1='\u@\h:\w\$ '
BASHRC
sed -i 's/^\( *\)PS1=.*/\1PS1='\''\\u@\\h:\\w\\$ '\''/' "$root/home/user/.bashrc"

# A sandbox is one user's own machine: pip may install into it.
printf '[global]\nbreak-system-packages = true\nroot-user-action = ignore\ndisable-pip-version-check = true\n' >"$root/etc/pip.conf"

# There is no init system that could start what a package brings.
printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
chmod 0755 "$root/usr/sbin/policy-rc.d"

printf 'soulbox\n' >"$root/etc/hostname"
printf '127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n' >"$root/etc/hosts"
rm -f "$root/etc/resolv.conf" "$root/etc/machine-id"
: >"$root/etc/resolv.conf"
: >"$root/etc/machine-id"
chmod 0644 "$root/etc/hostname" "$root/etc/hosts" "$root/etc/resolv.conf" "$root/etc/machine-id"

# What tells the day of the build. The 20,000th day since 1970 is as good as any for the last change of a password.
sed -i 's/^\([^:]*:[^:]*:\)[0-9]*:/\120000:/' "$root/etc/shadow"
rm -f "$root/etc/shadow-" "$root/etc/passwd-" "$root/etc/group-" "$root/etc/gshadow-" "$root/etc/subuid-" "$root/etc/subgid-"
rm -f "$root/var/cache/ldconfig/aux-cache" "$root/var/cache/debconf/"*-old "$root/var/lib/dpkg/"*-old
find "$root/var/log" -type f -exec rm -f {} +

# apt's lists and caches, whose folders' owners depend on where the build ran; apt makes them again.
rm -rf "$root/var/lib/apt/lists" "$root/var/cache/apt"
mkdir -p "$root/var/lib/apt/lists" "$root/var/cache/apt/archives"
