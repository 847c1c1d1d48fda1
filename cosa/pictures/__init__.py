"""What people look at: masks in colours, and panels of an evaluation."""
