# State and configuration stay: rpm knows no purge. docs/install.md says what to remove by hand.
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload || :
fi
