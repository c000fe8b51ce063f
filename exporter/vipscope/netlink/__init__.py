"""The kernel's wire formats. Whatever is sent from here asks; nothing here can change the kernel."""
