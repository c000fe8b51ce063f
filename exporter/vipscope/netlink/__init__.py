"""The kernel's wire formats. Whatever is sent from here asks; nothing can change the kernel."""
