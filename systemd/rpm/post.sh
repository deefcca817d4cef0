# After installing or upgrading: the user, the folders, and the new unit. $1 counts the versions that are there now.
systemd-sysusers phi-edge.conf || :
systemd-tmpfiles --create phi-edge.conf || :
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload || :
    if [ "$1" -gt 1 ]; then
        # Running answers are drained, what was accepted goes on in the new version.
        systemctl try-restart phi-edge.service || :
    fi
fi
