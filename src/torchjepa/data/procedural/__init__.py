"""Images made by arithmetic from data that is installed with the package."""
